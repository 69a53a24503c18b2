"""Stage times: complete, in order, and without influence on the picture."""

import time
from functools import partial
from pathlib import Path

import pytest
import torch

from infinity.pipeline import InfinityPipeline
from infinity.policy import PruningPolicy
from infinity.schedule import scale_schedule
from infinity.timing import NO_TIMER, StageClock
from stepvar_patch.policies import POLICIES
from tests.e2e.tiny_model import write_tiny_model
from tests.toy import toy_model, toy_run, toy_text

CPU = torch.device("cpu")
LOOP = {"pack", "next_input", "select", "sampling", "blocks", "head"}


def test_stages_add_up_to_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "perf_counter", iter((7.0, 7.02, 7.03, 7.05)).__next__)
    clock = StageClock(CPU)
    clock.mark("text")
    clock.mark("blocks", 3)
    clock.mark("text")
    spent = clock.milliseconds()
    assert list(spent) == [("text", None), ("blocks", 3)]
    assert spent == pytest.approx({("text", None): 40, ("blocks", 3): 10})


@pytest.mark.parametrize("kind", ["dense", "stepvar"])
def test_every_stage_of_every_scale_is_marked_and_the_picture_stays(kind: str) -> None:
    model = toy_model()
    schedule = scale_schedule(1.0, "0.06M")
    policy: PruningPolicy = POLICIES[kind]()
    text = toy_text(model, (5,))
    clock = StageClock(CPU)
    timed = toy_run(model, text, schedule, policy=policy, timer=clock)
    assert torch.equal(timed, toy_run(model, text, schedule, policy=policy, timer=NO_TIMER))
    spent = clock.milliseconds()
    assert ("conditioning", None) in spent
    last = len(schedule) - 1
    for si in range(len(schedule)):
        stages = {stage for stage, scale in spent if scale == si}
        assert stages - {"restore"} == LOOP
        assert ("restore" in stages) == (kind == "stepvar" and si > last - 4)


def test_the_pipeline_hands_the_clock_down(tiny_call) -> None:
    clock = StageClock(CPU)
    out = tiny_call(stage_clock=clock)
    spent = clock.milliseconds()
    assert {stage for stage, scale in spent if scale is None} == {
        *("text", "conditioning", "scales", "decode")
    }
    assert sum(out.timings.values()) == pytest.approx(sum(spent.values()))
    assert min(out.timings.values()) > 0


@pytest.fixture
def tiny_call(tmp_path: Path):
    write_tiny_model(tmp_path / "model")
    pipeline = InfinityPipeline.from_pretrained(tmp_path / "model", device="cpu")
    return partial(pipeline, "a red apple", seed=1)


@pytest.mark.gpu
def test_on_a_gpu_events_measure_and_captures_are_left_out() -> None:
    device = torch.device("cuda")
    x = torch.randn(4096, 4096, device=device)
    for _ in range(3):
        x @ x
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    before = time.perf_counter()
    clock = StageClock(device)
    for _ in range(20):
        x @ x
    clock.mark("blocks", 0)
    with torch.cuda.graph(graph):
        y = x @ x
        clock.mark("head", 0)
    graph.replay()
    clock.mark("decode")
    torch.cuda.synchronize()
    whole_ms = 1e3 * (time.perf_counter() - before)
    spent = clock.milliseconds()
    assert list(spent) == [("blocks", 0), ("decode", None)]
    assert spent["blocks", 0] > 1
    assert sum(spent.values()) <= whole_ms
    assert y.shape == x.shape
