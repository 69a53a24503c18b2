"""The cost model against published figures, the FLOPs that really run, and its solver."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from infinity.config import PRESETS, ModelConfig
from infinity.errors import UserError
from infinity.policy import DensePolicy, DenseRun, PolicyRequest, PolicyRun
from infinity.sampling.settings import resolve_settings
from infinity.schedule import scale_schedule
from infinity.transformer.model import InfinityTransformer
from stepvar_patch.cost import plan_cost, speedup
from stepvar_patch.experiments.metrics.flops import count_flops
from stepvar_patch.policies import DensePolicy as RuledDense
from stepvar_patch.policies import StepVARPolicy
from stepvar_patch.policies.selection import BALANCED
from stepvar_patch.rules import ScaleRule, Scales
from stepvar_patch.target_speedup import solve
from tests.toy import toy_run, toy_settings, toy_text


def request(model: ModelConfig, *, guidance_rows: int = 2, images: int = 1) -> PolicyRequest:
    c = model.transformer
    schedule = scale_schedule(1.0, model.resolution, c.rope_reference)
    return PolicyRequest(
        schedule, images, guidance_rows, c.depth, c.width, c.heads, c.patchify, "cuda"
    )


def keeping(*ratios: float) -> Scales:
    return {i - len(ratios): ScaleRule(keep_ratio=r) for i, r in enumerate(ratios)}


PLANS: list[tuple[Scales, float, float]] = [
    (BALANCED, 2.00, 1.89),
    (keeping(0.6, 0.6), 1.44, 1.40),
    (keeping(0.4, 0.4, 0.4), 2.17, 2.04),
    (keeping(0.6, 0.5, 0.4, 0.3), 2.51, 2.34),
    ({-1: ScaleRule(run=False)}, 1.87, 1.78),
    ({-2: ScaleRule(run=False), -1: ScaleRule(run=False)}, 3.15, 2.92),
    ({-3: ScaleRule(rows="cond")}, 1.69, 1.66),
]


@pytest.mark.parametrize(("scales", "speed_2b", "speed_8b"), PLANS)
def test_speed_ups_of_the_specification(scales: Scales, speed_2b: float, speed_8b: float) -> None:
    """Its table rounds to two digits and leaves out head and text."""
    policy = StepVARPolicy(scales=scales)
    for name, expected in (("infinity-2b", speed_2b), ("infinity-8b", speed_8b)):
        model = PRESETS[name]
        assert speedup(policy, model, request(model)) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("policy", [DensePolicy(), StepVARPolicy()], ids=["dense", "balanced"])
def test_flops_of_the_embedded_shape(policy: DensePolicy | StepVARPolicy) -> None:
    """Two layers with random weights stand for all eight."""
    model = PRESETS["embedded"]
    model = replace(model, transformer=replace(model.transformer, depth=2))
    with torch.device("meta"):
        network = InfinityTransformer(model.transformer)
    network = network.to_empty(device="cpu").eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.02)
    schedule = request(model).schedule
    text = toy_text(network, (9,))
    settings = toy_settings(schedule)
    flops = count_flops(lambda: toy_run(network, text, schedule, settings=settings, policy=policy))
    cost = plan_cost(policy, model, request(model), settings=settings, text_tokens=9)
    assert cost.flops == pytest.approx(flops, rel=0.01)


def test_the_embedded_model_halves_its_flops_when_balanced() -> None:
    model = PRESETS["embedded"]
    assert speedup(StepVARPolicy(), model, request(model)) > 2


@pytest.mark.parametrize("name", ["embedded", "infinity-125m", "infinity-2b"])
@pytest.mark.parametrize("target", [1.5, 2.5])
def test_solved_ratios_reach_the_target_and_no_more(name: str, target: float) -> None:
    model = PRESETS[name]
    policy = solve(StepVARPolicy(restore="nearest_change"), target, model, request(model))
    reached = speedup(policy, model, request(model))
    assert target <= reached < target * 1.02
    assert policy.restore == "nearest_change"
    drops = [1 - rule.keep_ratio for rule in policy.scales.values()]
    assert drops[0] / drops[1] == pytest.approx(0.8, abs=1e-3)


def test_impossible_targets_are_refused() -> None:
    model = PRESETS["infinity-2b"]
    with pytest.raises(
        UserError, match=r"target_speedup is 50; allowed with these scales: 1\.00 to"
    ):
        solve(StepVARPolicy(), 50, model, request(model))
    rows = {-1: ScaleRule(rows="cond"), -2: ScaleRule(keep_ratio=0.5)}
    with pytest.raises(UserError, match="allowed with these scales"):
        solve(StepVARPolicy(scales=rows), 1.05, model, request(model))
    with pytest.raises(UserError, match="keep_ratio below 1"):
        solve(RuledDense(), 2.0, model, request(model))


def test_cache_bytes_count_rows_layers_and_precision() -> None:
    model = PRESETS["infinity-2b"]
    cost = plan_cost(RuledDense(), model, request(model, images=3))
    assert cost.scales[-1].cache_bytes == 3 * 2 * 32 * 2 * 2048 * (10521 - 4096) * 2
    assert cost.scales[-1].cache_bytes == cost.scales[-2].cache_bytes
    pruned = plan_cost(StepVARPolicy(), model, request(model, images=3))
    assert pruned.scales[11].kept == 1152
    dropped = (1024 - 615) + (1600 - 800) + (2304 - 1152)
    assert pruned.scales[-1].cache_bytes == 3 * 2 * 32 * 2 * 2048 * (10521 - 4096 - dropped) * 2
    alone = plan_cost(RuledDense(), model, request(model, guidance_rows=1))
    assert alone.scales[0].rows == 1


def test_policies_that_decide_while_drawing_have_no_cost_beforehand() -> None:
    class Deciding(DenseRun):
        pass

    class Policy:
        name = "deciding"

        def start(self, request: PolicyRequest) -> PolicyRun:
            return Deciding(request)

    model = PRESETS["embedded"]
    with pytest.raises(UserError, match="decides while it draws"):
        plan_cost(Policy(), model, request(model))


def test_settings_decide_where_the_unconditional_rows_end() -> None:
    model = PRESETS["infinity-2b"]
    stopped = resolve_settings(model.sampling, 13, 32, guidance_scale=[3.0] * 10 + [1.0] * 3)
    by_rule = RuledDense(scales={-3: ScaleRule(rows="cond")})
    a = plan_cost(RuledDense(), model, request(model), settings=stopped)
    b = plan_cost(by_rule, model, request(model))
    assert a.scales[-1].rows == b.scales[-1].rows == 1
    assert a.scales[5].flops == b.scales[5].flops
    assert a.flops == pytest.approx(b.flops, rel=1e-3)
