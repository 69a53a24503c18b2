"""One suite for all policies: what each must keep to, whatever it prunes."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from infinity.config import ModelConfig, TextEncoderConfig, TokenizerConfig
from infinity.policy import (
    Branch,
    BranchPlan,
    PolicyRequest,
    PolicyRun,
    PruningPolicy,
    Rows,
    ScalePlan,
    ScaleView,
)
from infinity.sampling.loop import ScaleEnd
from infinity.sampling.settings import SamplingSettings
from infinity.schedule import TEMPLATES, ScaleSchedule, scale_schedule
from infinity.text.base import TextFeatures
from infinity.tokens import KeepSet
from infinity.transformer.guidance import Guidance
from infinity.transformer.model import InfinityTransformer
from stepvar_patch.cost import Loaded, plan_cost
from stepvar_patch.experiments.metrics.flops import count_flops
from stepvar_patch.policies import POLICIES, DensePolicy, OraclePolicy
from stepvar_patch.policies.oracle import ChangeRecorder, replaying
from stepvar_patch.rules import ScaleRule
from stepvar_patch.upsample import nearest_source
from tests.property.policy_cases import CASES, EVERYTHING, FIRST, OTHERS, PICTURE_DECIDES
from tests.toy import remembered_calls, toy_model, toy_run, toy_settings, toy_text

GUIDANCE = {
    "logits": (3.0, Guidance(frozenset(), True)),
    "hidden": (3.0, Guidance(frozenset({1}), False)),
    "off": (1.0, Guidance(frozenset(), True)),
    "stopped midway": ((3.0,) * 5 + (1.0,) * 2, Guidance(frozenset(), True)),
}


@cache
def model(patchify: bool = False) -> InfinityTransformer:
    return toy_model(patchify=patchify)


def sampling(name: str, schedule: ScaleSchedule) -> SamplingSettings:
    scale, guidance = GUIDANCE[name]
    return toy_settings(schedule, guidance_scale=scale, guidance=guidance)


def draw(
    policy: PruningPolicy | None, images: int = 1, guidance: str = "logits", **how: Any
) -> Tensor:
    schedule = how.pop("schedule", scale_schedule(1.0, "0.06M"))
    network = how.pop("network", model())
    text = toy_text(network, (4,) * images)
    settings = sampling(guidance, schedule)
    return toy_run(network, text, schedule, settings=settings, policy=policy, **how)


@cache
def dense(images: int, guidance: str) -> Tensor:
    return draw(None, images, guidance)


def test_every_policy_takes_part() -> None:
    """The oracle has its own test: it needs a recorded run."""
    assert {case.policy.kind for case in CASES.values()} | {"oracle"} == set(POLICIES)


@pytest.mark.parametrize(
    ("name", "guidance", "images"),
    [(n, g, b) for n in FIRST for g in GUIDANCE for b in (1, 3)]
    + [(n, g, 2) for n in OTHERS for g in ("logits", "hidden")],
)
def test_keeping_everything_is_dense_bit_for_bit(name: str, guidance: str, images: int) -> None:
    expected = dense(images, guidance)
    assert torch.equal(draw(CASES[name].complete, images, guidance), expected)
    pruned = draw(CASES[name].policy, images, guidance)
    assert pruned.shape == expected.shape
    assert pruned.isfinite().all()
    assert not torch.equal(pruned, expected)


@pytest.mark.parametrize("name", [n for n in CASES if hasattr(CASES[n].policy, "scope")])
@pytest.mark.parametrize("rows", ["cond", "uncond"])
def test_keeping_everything_leaves_rows_and_echo_as_they_are(name: str, rows: Rows) -> None:
    """The same rules without pruning give the same picture, bit for bit."""
    echo = 0.5 if rows == "cond" else 0.0
    rules = {
        "-3": ScaleRule(rows=rows, guidance_echo=echo),
        "-2": ScaleRule(run=False),
        "-1": ScaleRule(guidance_echo=echo),
    }
    kept = {key: replace(rule, keep_ratio=0.9999) for key, rule in rules.items()}
    expected = draw(DensePolicy(scales=rules), 2)
    assert torch.equal(draw(replace(CASES[name].policy, scales=kept), 2), expected)
    assert not torch.equal(expected, dense(2, "logits"))


@pytest.mark.parametrize(
    ("name", "ratios", "patchify"),
    [(n, tuple(TEMPLATES), False) for n in FIRST] + [(n, (1.5, 0.333), True) for n in CASES],
)
def test_every_aspect_ratio(name: str, ratios: tuple[float, ...], patchify: bool) -> None:
    for ratio in ratios:
        schedule = scale_schedule(ratio, "0.06M")
        out = draw(CASES[name].policy, schedule=schedule, network=model(patchify))
        grid = schedule.latent_grids(patchify)[-1]
        assert out.shape == (1, model(patchify).config.codebook_dim, *grid)
        assert out.isfinite().all()


@pytest.mark.parametrize("name", CASES)
def test_an_image_does_not_depend_on_its_batch(name: str) -> None:
    together: list[ScaleEnd] = []
    alone: list[ScaleEnd] = []
    draw(CASES[name].policy, 3, on_scale_end=together)
    draw(CASES[name].policy, 1, on_scale_end=alone)
    for a, b in zip(together, alone, strict=True):
        n = b.logits.shape[0]
        torch.testing.assert_close(a.logits[:n], b.logits, atol=2e-5, rtol=0)


def request_of(network: InfinityTransformer, schedule: ScaleSchedule, images: int) -> PolicyRequest:
    c = network.config
    return PolicyRequest(schedule, images, 2, c.depth, c.width, c.heads, c.patchify, "cpu")


def model_config(network: InfinityTransformer) -> ModelConfig:
    shape = network.config
    return ModelConfig(
        name="toy",
        resolution="0.06M",
        transformer=shape,
        tokenizer=TokenizerConfig(codebook_dim=shape.codebook_dim, patch_size=16),
        text_encoder=TextEncoderConfig(kind="t5", width=shape.text_width, max_tokens=12),
    )


@pytest.mark.parametrize(
    ("name", "guidance"),
    [(n, "logits") for n in CASES if n not in PICTURE_DECIDES]
    + [(n, g) for n in FIRST if n not in PICTURE_DECIDES for g in ("hidden", "stopped midway")],
)
def test_budget_and_cache_are_what_the_cost_model_says(
    name: str, guidance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FLOPs within 5 %; cached keys and values exactly, and none of the last scale."""
    policy, schedule, images = CASES[name].policy, scale_schedule(1.0, "0.06M"), 2
    request = request_of(model(), schedule, images)
    assert isinstance(policy.start(request), Loaded)
    calls = remembered_calls(monkeypatch)
    flops = count_flops(lambda: draw(policy, images, guidance))
    cost = plan_cost(
        policy,
        model_config(model()),
        request,
        settings=sampling(guidance, schedule),
        text_tokens=4,
    )
    assert cost.flops == pytest.approx(flops, rel=0.05)
    width, held = model().config.width, sum(sum(c.lengths) for c in calls[0].caches)
    assert cost.scales[-1].cache_bytes == held * 2 * width * 4


@dataclass(frozen=True)
class Shuffled:
    """A policy whose keep sets list their indices in descending order."""

    policy: Any
    name: str = "shuffled"

    def start(self, request: PolicyRequest) -> PolicyRun:
        run = self.policy.start(request)
        plan_scale, plan_branch = run.plan_scale, run.plan_branch

        def scale(si: int, view: ScaleView) -> ScalePlan:
            plan = plan_scale(si, view)
            if plan.keep is None:
                return plan
            keep = descending(plan.keep)
            source = None if plan.kv_source is None else nearest_source(keep, view.grid)
            return replace(plan, keep=keep, kv_source=source)

        def branch(si: int, layer: int, branch: Branch, x: Tensor) -> BranchPlan | None:
            plan = plan_branch(si, layer, branch, x)
            return None if plan is None else replace(plan, keep=descending(plan.keep))

        run.plan_scale, run.plan_branch = scale, branch
        return run


def descending(keep: KeepSet) -> KeepSet:
    parts = keep.indices.split(list(keep.counts))
    return KeepSet(torch.cat([part.flip(0) for part in parts]), keep.counts)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.any_order])
def test_the_order_of_indices_does_not_matter(name: str) -> None:
    ascending: list[ScaleEnd] = []
    shuffled: list[ScaleEnd] = []
    draw(CASES[name].policy, 2, on_scale_end=ascending)
    draw(Shuffled(CASES[name].policy), 2, on_scale_end=shuffled)
    for a, b in zip(ascending, shuffled, strict=True):
        if a.logits.shape[0] == 2 * a.grid[0] * a.grid[1]:
            torch.testing.assert_close(a.logits, b.logits, atol=2e-5, rtol=0)
        torch.testing.assert_close(a.latent, b.latent, atol=1e-4, rtol=0)


def test_the_oracle_keeps_what_a_dense_run_changed_most() -> None:
    recorder = ChangeRecorder()
    assert torch.equal(draw(recorder, 2), dense(2, "logits"))
    policy = OraclePolicy(scales={"-1": ScaleRule(keep_ratio=0.25)})
    run = replaying(policy, recorder.calls).start(
        request_of(model(), scale_schedule(1.0, "0.06M"), 2)
    )
    changes = recorder.calls[0][6]
    keep = run.select(6, torch.zeros(2, 256, 64))  # type: ignore[attr-defined]
    best = changes.topk(64, dim=1).indices.sort(1).values
    assert torch.equal(keep.indices.view(2, 64), best)
    pruned = draw(replaying(policy, recorder.calls), 2)
    assert not torch.equal(pruned, dense(2, "logits"))
    complete = replaying(OraclePolicy(scales=EVERYTHING), recorder.calls)
    assert torch.equal(draw(complete, 2), dense(2, "logits"))


def draw_on_gpu(policy: PruningPolicy | None) -> Tensor:
    network, schedule = toy_model().cuda(), scale_schedule(1.0, "0.06M")
    network.load_state_dict(model().state_dict())
    text = toy_text(network, (4, 4))
    text = TextFeatures(text.rows.cuda(), text.lengths)
    return toy_run(network, text, schedule, policy=policy)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_keeping_everything_is_dense_on_a_gpu(name: str) -> None:
    assert torch.equal(draw_on_gpu(CASES[name].complete), draw_on_gpu(None))
    assert draw_on_gpu(CASES[name].policy).isfinite().all()


@pytest.mark.gpu
@pytest.mark.parametrize("name", [n for n in CASES if n.startswith(("stepvar", "lattice", "norm"))])
def test_selection_and_sources_never_wait_for_the_gpu(name: str) -> None:
    policy = replace(CASES[name].policy, scales={"-1": ScaleRule(keep_ratio=0.4)})
    run = policy.start(request_of(model(), scale_schedule(1.0, "0.06M"), 2))
    x = torch.randn(4, 256, 64, device="cuda")
    run.select(6, x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        nearest_source(run.select(6, x), (16, 16))
    finally:
        torch.cuda.set_sync_debug_mode("default")
