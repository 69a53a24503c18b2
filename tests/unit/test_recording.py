"""How a recording branches, without a GPU: what is recorded is computed at once, not at a replay.

So a recording serves only the prompts and seeds that it was made from; the GPU tests of
``test_engine.py`` replay for others.
"""

import logging
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from infinity.engine.prompts import Prompts
from infinity.engine.recording import Recording
from infinity.policy import PruningPolicy
from infinity.sampling.loop import OnScaleEnd, ScaleEnd, ScaleLoop
from infinity.sampling.noise import PerImageNoise
from infinity.schedule import scale_schedule
from infinity.timing import NO_TIMER, StageTimer
from stepvar_patch.policies import DensePolicy, LDPruningPolicy
from tests.toy import toy_model, toy_settings, toy_text

pytestmark = pytest.mark.skipif(
    torch.version.cuda is not None, reason="torch is built for CUDA; test_engine.py records there"
)


class Computed(torch.cuda.CUDAGraph):
    """Stands for a CUDA graph.

    Attributes:
        fails_from: the capture that fails, counted from 0, and all after it.
    """

    fails_from: int | None = None
    made = 0

    def __new__(cls) -> "Computed":
        return object.__new__(cls)

    def __init__(self) -> None:
        """There is no device."""

    def capture_begin(self, **words: Any) -> None:
        Computed.made += 1
        if self.fails_from is not None and Computed.made > self.fails_from:
            raise RuntimeError("rows of unequal length cannot be recorded")

    def capture_end(self) -> None:
        """Nothing was begun."""

    def replay(self) -> None:
        """It has been computed already."""


class NoStream(torch.cuda.Stream):
    """Stands for the stream that is recorded on."""

    def __new__(cls) -> "NoStream":
        return object.__new__(cls)

    def __init__(self) -> None:
        """There is none."""


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Computed)
    monkeypatch.setattr("infinity.engine.recording._recording_on", lambda stream: nullcontext())
    monkeypatch.setattr(Computed, "made", 0)
    monkeypatch.setattr(Computed, "fails_from", None)
    with torch.inference_mode():
        yield


MODEL = toy_model()
TEXT = MODEL.with_unconditional(toy_text(MODEL, (5,)))
SCHEDULE = scale_schedule(1.0, "0.06M")
DECIDING = LDPruningPolicy(branch_stop=0.4, rungs=8)
"""Asks before each of the last three scales."""


def begin(policy: PruningPolicy) -> Any:
    def loop(
        prompts: Prompts, noise: PerImageNoise, on_scale_end: OnScaleEnd | None, timer: StageTimer
    ) -> ScaleLoop:
        return ScaleLoop(
            MODEL,
            MODEL.condition(TEXT),
            SCHEDULE,
            toy_settings(SCHEDULE),
            noise,
            policy,
            images=1,
            on_scale_end=on_scale_end,
            timer=timer,
        )

    return loop


def recording(policy: PruningPolicy, *, listening: bool = False) -> Recording:
    return Recording(
        begin(policy),
        TEXT,
        PerImageNoise([3], "cpu"),
        NO_TIMER,
        policy=policy.name,
        listening=listening,
        pool=(0, 0),
        stream=NoStream(),
    )


def drawn(made: Recording, ends: list[ScaleEnd] | None = None) -> Tensor:
    return made(TEXT, PerImageNoise([3], "cpu"), None if ends is None else ends.append, NO_TIMER)


def straight(policy: PruningPolicy, ends: list[ScaleEnd] | None = None) -> Tensor:
    heard = None if ends is None else ends.append
    prompts = Prompts.of(TEXT, torch.device("cpu"))
    return begin(policy)(prompts, PerImageNoise([3], "cpu"), heard, NO_TIMER).finish()


def test_a_call_without_questions_is_one_stretch() -> None:
    made = recording(DensePolicy())
    assert torch.equal(drawn(made), straight(DensePolicy()))
    assert made._stretches == 1
    assert Computed.made == 1 + len(SCHEDULE)


@pytest.mark.parametrize("listening", [False, True])
def test_an_answer_is_recorded_when_it_comes_back(listening: bool) -> None:
    made, wanted = recording(DECIDING, listening=listening), list[ScaleEnd]()
    latent = straight(DECIDING, wanted)
    depths = []
    for _ in range(8):
        ends: list[ScaleEnd] = []
        assert torch.equal(drawn(made, ends if listening else None), latent)
        depths.append(made._stretches)
        if listening:
            assert [end.scale for end in ends] == [end.scale for end in wanted]
            for a, b in zip(ends, wanted, strict=True):
                assert torch.equal(a.logits, b.logits)
                assert torch.equal(a.latent, b.latent)
    assert depths == [1, 2, 3, 4, 4, 4, 4, 4]


def test_a_recording_says_once_that_it_grows_no_further(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("infinity.engine.recording._MOST_STRETCHES", 2)
    made, latent = recording(DECIDING), straight(DECIDING)
    with caplog.at_level(logging.WARNING):
        assert all(torch.equal(drawn(made), latent) for _ in range(5))
    assert made._stretches == 2
    assert [("ldpruning" in r.message, "2 stretches" in r.message) for r in caplog.records] == [
        (True, True)
    ]


def test_what_cannot_be_recorded_is_tried_once(caplog: pytest.LogCaptureFixture) -> None:
    made, latent = recording(DECIDING), straight(DECIDING)
    Computed.fails_from = Computed.made
    with caplog.at_level(logging.WARNING):
        assert all(torch.equal(drawn(made), latent) for _ in range(5))
    assert made._stretches == 1
    assert Computed.made == Computed.fails_from + 1
    assert len(caplog.records) == 1
    assert "unequal length" in caplog.text


def test_what_fails_from_the_start_is_told_to_whoever_asked_for_it() -> None:
    Computed.fails_from = 3
    with pytest.raises(RuntimeError, match="unequal length"):
        recording(DensePolicy())
