"""How calls are carried out: the choice of an engine, and recorded calls against eager ones."""

import logging
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

import pytest
import torch
from torch import Tensor

from infinity.config import Resolution
from infinity.engine import Engine
from infinity.engine.prompts import Prompts
from infinity.errors import UserError
from infinity.policy import (
    DensePolicy,
    DenseRun,
    PolicyRequest,
    PolicyRun,
    PruningPolicy,
    ScalePlan,
    ScaleView,
)
from infinity.sampling.loop import ScaleEnd
from infinity.sampling.noise import PerImageNoise
from infinity.schedule import TEMPLATES, scale_schedule
from infinity.transformer.call_state import _rope_on
from infinity.transformer.fused import text_room
from infinity.transformer.model import InfinityTransformer
from stepvar_patch.policies import (
    FastVARPolicy,
    LDPruningPolicy,
    OraclePolicy,
    SkipVARPolicy,
    SparseVARPolicy,
    StepVARPolicy,
)
from stepvar_patch.policies.skipvar import LogisticFit, SkipDecision
from stepvar_patch.rules import ScaleRule
from tests.property.scripted import Scripted
from tests.toy import toy_model, toy_settings, toy_text

ALL = ScaleRule(keep_ratio=0.9999)
"""Less than 1, so that tokens are chosen, and rounded to all of them."""


def test_without_a_gpu_the_modules_run_as_they_read(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "infinity.engine.engine"):
        engine = Engine(toy_model())
    assert engine.mode == "plain"
    assert "engine: plain, because" in caplog.text
    assert engine.decoder(torch.nn.Identity(), torch.bfloat16) is None


@pytest.mark.parametrize(
    ("words", "reason"),
    [({"mode": "graphs"}, "engine is graphs, "), ({"fp8": True}, "fp8 needs engine")],
)
def test_what_cannot_run_is_refused(words: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        Engine(toy_model(), **words)


def test_a_rotary_table_stays_where_a_recorded_call_reads_it() -> None:
    shapes = [(ratio, resolution) for ratio in TEMPLATES for resolution in get_args(Resolution)]
    first = _rope_on(scale_schedule(1.0, "0.06M"), 4, torch.device("cpu"))
    for ratio, resolution in shapes:
        _rope_on(scale_schedule(ratio, resolution), 4, torch.device("cpu"))
    assert _rope_on(scale_schedule(1.0, "0.06M"), 4, torch.device("cpu")) is first


def test_only_policies_that_promise_it_are_replayed() -> None:
    always = [
        DensePolicy(),
        StepVARPolicy(),
        FastVARPolicy(),
        SparseVARPolicy(),
        SkipVARPolicy(),
        LDPruningPolicy(),
    ]
    assert all(getattr(policy, "replayable", False) for policy in always)
    assert not any(getattr(policy, "replayable", False) for policy in (OraclePolicy(), Scripted()))


def test_prompts_of_similar_length_share_a_recording() -> None:
    assert [text_room(n, 2) for n in (4, 63, 128, 129)] == [128, 128, 128, 256]


def test_prompts_in_rounded_memory_condition_the_blocks_alike() -> None:
    model = toy_model()
    first, second = toy_text(model, (3, 70, 5)), toy_text(model, (80, 2, 1), seed=9)
    prompts = Prompts.of(first, torch.device("cpu"))
    assert (len(prompts.rows), prompts.longest) == (192, 128)
    for text in (first, second, first):
        prompts.replace(text)
        total = len(text.rows)
        prompts.rows[total:] = 1e4
        exact = model.condition(text)
        rounded = model.condition_rows(
            prompts.rows, prompts.cu_seqlens, prompts.lengths, prompts.longest
        )
        torch.testing.assert_close(rounded.sos, exact.sos)
        torch.testing.assert_close(rounded.shared, exact.shared)
        torch.testing.assert_close(rounded.context[:total], exact.context)
        assert torch.equal(rounded.cu_seqlens, exact.cu_seqlens)


def early_picture(latent: Tensor) -> Tensor:
    return latent[:, :3].tanh()


def call(
    engine: Engine,
    seeds: tuple[int, ...],
    policy: PruningPolicy,
    ends: list[ScaleEnd] | None = None,
) -> Tensor:
    model, schedule = engine.model, scale_schedule(1.0, "0.06M")
    lengths = (3, 5)[: len(seeds)]
    text = model.with_unconditional(toy_text(model, lengths, seed=seeds[0]))
    return engine.latents(
        text,
        schedule,
        toy_settings(schedule),
        PerImageNoise(seeds, model.device),
        policy,
        images=len(seeds),
        decode=early_picture,
        on_scale_end=None if ends is None else ends.append,
    )


@pytest.mark.gpu
@pytest.mark.parametrize("listening", [False, True])
@pytest.mark.parametrize(
    "policy",
    [
        DensePolicy(),
        StepVARPolicy(),
        FastVARPolicy(),
        StepVARPolicy(scope="layer"),
        SparseVARPolicy(anchor_stride=4),
        SparseVARPolicy(restore="code_zero"),
        SkipVARPolicy(),
    ],
    ids=["dense", "stepvar", "fastvar", "layer", "sparsevar", "sparsevar-zero", "skipvar"],
)
def test_recorded_calls_are_eager_ones_bit_for_bit(policy: PruningPolicy, listening: bool) -> None:
    model = toy_model().requires_grad_(False).set_compute_dtype(torch.bfloat16).to("cuda")
    eager, graphs = Engine(model, mode="eager"), Engine(model, mode="graphs")
    for seed in range(4):
        seen: list[list[ScaleEnd]] = [[], []]
        latents = [
            call(engine, (seed, seed + 9), policy, heard if listening else None)
            for engine, heard in zip((eager, graphs), seen, strict=True)
        ]
        assert torch.equal(*latents)
        for a, b in zip(*seen, strict=True):
            assert torch.equal(a.logits, b.logits)
            assert torch.equal(a.latent, b.latent)
    assert len(graphs._recordings) == 1


@pytest.mark.gpu
def test_keeping_everything_is_dense_bit_for_bit_with_graphs() -> None:
    model = toy_model().requires_grad_(False).set_compute_dtype(torch.bfloat16).to("cuda")
    engine = Engine(model, mode="graphs")
    everything = StepVARPolicy(scales={"-1": ALL, "-2": ALL})
    for seed in range(3):
        dense, kept = (call(engine, (seed, 7), p, None) for p in (DensePolicy(), everything))
        assert torch.equal(dense, kept)


@pytest.fixture
def bf16_model() -> InfinityTransformer:
    return toy_model().requires_grad_(False).set_compute_dtype(torch.bfloat16).to("cuda")


def deciding(name: str) -> PruningPolicy:
    fits = [
        LogisticFit(mean=(0, 0), scale=(1, 1), weights=((0, 0), (1, 0)), bias=(threshold, 0))
        for threshold in (0.35, 0.3)
    ]
    return {
        "ldpruning": LDPruningPolicy(branch_stop=0.3),
        "ldpruning-rungs": LDPruningPolicy(branch_stop=0.3, rungs=4),
        "skipvar": SkipVARPolicy(scales={}, decision=SkipDecision(drop=fits[0], rows=fits[1])),
    }[name]


@pytest.mark.gpu
@pytest.mark.parametrize("listening", [False, True])
@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("name", ["ldpruning", "ldpruning-rungs", "skipvar"])
def test_recorded_decisions_are_eager_ones_bit_for_bit(
    name: str, images: int, listening: bool, bf16_model: InfinityTransformer
) -> None:
    eager, graphs = Engine(bf16_model, mode="eager"), Engine(bf16_model, mode="graphs")
    for seed in (0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 4):
        seen: list[list[ScaleEnd]] = [[], []]
        latents = [
            call(engine, (seed, seed + 9)[:images], deciding(name), heard if listening else None)
            for engine, heard in zip((eager, graphs), seen, strict=True)
        ]
        assert torch.equal(*latents)
        for a, b in zip(*seen, strict=True):
            assert a.scale == b.scale
            assert torch.equal(a.logits, b.logits)
            assert torch.equal(a.latent, b.latent)
    (_, recording), *others = graphs._recordings
    assert not others
    if images == 1:
        assert recording._stretches > 1


@pytest.mark.gpu
def test_a_recording_grows_no_further_than_it_may(
    monkeypatch: pytest.MonkeyPatch, bf16_model: InfinityTransformer
) -> None:
    monkeypatch.setattr("infinity.engine.recording._MOST_STRETCHES", 2)
    eager, graphs = Engine(bf16_model, mode="eager"), Engine(bf16_model, mode="graphs")
    policy = LDPruningPolicy(branch_stop=0)
    for seed in (0, 1, 2) * 3:
        assert torch.equal(call(eager, (seed,), policy), call(graphs, (seed,), policy))
    assert graphs._recordings[0][1]._stretches == 2


@dataclass(frozen=True)
class Breaking:
    """Promises what it does not keep: looks at the device behind the recorder's back."""

    replayable: ClassVar[bool] = True
    name: str = "breaking"

    def start(self, request: PolicyRequest) -> PolicyRun:
        return _BreakingRun(request)


class _BreakingRun(DenseRun):
    def plan_scale(self, si: int, view: ScaleView) -> ScalePlan:
        assert view.latent.sum().item() is not None
        return super().plan_scale(si, view)


@pytest.mark.gpu
def test_calls_that_wait_for_the_device_are_left_unrecorded(
    bf16_model: InfinityTransformer, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(bf16_model, mode="graphs")
    with caplog.at_level(logging.WARNING, "infinity.engine.engine"):
        latents = [call(engine, (1, 7), Breaking()) for _ in range(3)]
    assert torch.equal(latents[0], latents[2])
    assert not engine._recordings
    assert "breaking" in caplog.text


@pytest.mark.gpu
def test_calls_are_recorded_again_after_all_recordings_were_dropped() -> None:
    model = toy_model().requires_grad_(False).set_compute_dtype(torch.bfloat16).to("cuda")
    engine = Engine(model, mode="graphs")
    first = [call(engine, (1, 7), DensePolicy(), None) for _ in range(3)][-1]
    assert engine._memory is not None
    engine._memory.grown()
    again = call(engine, (1, 7), DensePolicy(), None)
    assert len(engine._recordings) == 1
    assert torch.equal(first, again)
