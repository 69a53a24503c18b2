"""What the rivals refuse, and the cost that they tell beforehand."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from rival_calls import HALF, adaptive, always, model, request_of, run_toy

from infinity.config import PRESETS
from infinity.errors import UserError
from infinity.policy import PolicyRequest, PruningPolicy
from infinity.schedule import scale_schedule
from stepvar_patch.cost import plan_cost
from stepvar_patch.experiments.metrics.flops import count_flops
from stepvar_patch.policies.fastvar import FastVARPolicy
from stepvar_patch.policies.ldpruning import LDPruningPolicy
from stepvar_patch.policies.ruled import RuledRun
from stepvar_patch.policies.skipvar import SkipDecision, SkipVARPolicy
from stepvar_patch.policies.sparsevar import SparseVARPolicy
from stepvar_patch.policies.tome import ToMePolicy
from stepvar_patch.rules import ScaleRule
from tests.toy import toy_run, toy_settings, toy_text

FOUR_CLASSES: dict[str, Any] = {"drop": always(0), "rows": always(0)}


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (FastVARPolicy(scales={"0": ScaleRule(keep_ratio=0.5), "1": ScaleRule()}), None),
        (FastVARPolicy(layers=(0.5, 0.5)), "holds no layer"),
        (FastVARPolicy(scales={"-9": ScaleRule(keep_ratio=0.5)}), "matches no scale"),
        (SparseVARPolicy(scales={"0": ScaleRule(keep_ratio=0.5)}), None),
        (SparseVARPolicy(scales={"-1": ScaleRule(keep_ratio=0.05)}), "16 anchors"),
        (LDPruningPolicy(scales={"0": ScaleRule()}), "before which no scale runs"),
        (LDPruningPolicy(first_stop_scale=-7), "first_stop_scale is -7"),
        (LDPruningPolicy(scales={"-1": ScaleRule(rows="uncond")}), "branch_stop ends"),
        (SkipVARPolicy(scales=HALF), "not tokens"),
        (
            SkipVARPolicy(
                scales={"-3": ScaleRule(rows="uncond")}, decision=SkipDecision(**FOUR_CLASSES)
            ),
            "the decision ends the unconditional rows",
        ),
        (
            SkipVARPolicy(scales={"-2": ScaleRule(rows="cond"), "-1": ScaleRule(guidance=9.0)}),
            r"scales\.-1\.guidance is 9\.0, but only one half .* from scales\.-2 on",
        ),
        (SkipVARPolicy(decision=SkipDecision(**FOUR_CLASSES, after_scale=-7)), "after_scale is -7"),
        (SkipVARPolicy(decision=SkipDecision(**FOUR_CLASSES, after_scale=-3)), "at most 3"),
        (ToMePolicy(scales={"-1": ScaleRule(keep_ratio=0.2)}), "one token per 2×2 cell"),
        (
            FastVARPolicy(scales={"0": ScaleRule(run=False), "1": ScaleRule(keep_ratio=0.5)}),
            "before which no scale runs",
        ),
    ],
)
def test_refusals_are_one_sentence(policy: PruningPolicy, message: str | None) -> None:
    if message is None:  # one token cannot be halved: nothing is pruned
        policy.start(request_of())
        return
    with pytest.raises(UserError, match=message) as refusal:
        policy.start(request_of())
    assert "\n" not in str(refusal.value)
    assert "allowed" in str(refusal.value)


def test_rows_that_end_at_a_scale_that_does_not_run_end_all_the_same() -> None:
    waiting = {"-3": ScaleRule(run=False, rows="cond"), "-1": ScaleRule(guidance_echo=0.5)}
    run = SkipVARPolicy(scales=waiting).start(request_of())
    assert isinstance(run, RuledRun)
    assert [run.load(si).rows for si in range(7)] == [*["both"] * 4, "cond", "cond", "both"]
    moved = {**waiting, "-3": ScaleRule(run=False), "-2": ScaleRule(rows="cond")}
    outs = [run_toy((3,), SkipVARPolicy(scales=scales)) for scales in (waiting, moved)]
    assert torch.equal(*outs)


def test_a_scale_that_only_inherits_its_rows_is_not_pruned() -> None:
    """LD-Pruning selects at the scales that ``scales`` names."""
    named = {"-2": ScaleRule(run=False, rows="cond")}
    run = LDPruningPolicy(scales=named, energy_share=0.5, branch_stop=0).start(request_of())
    assert isinstance(run, RuledRun)
    load = run.load(6)
    assert (load.rows, load.layers) == ("cond", None)


def test_an_adaptive_skip_needs_a_decoder() -> None:
    with pytest.raises(UserError, match="needs a picture decoder"):
        toy_run(model(), toy_text(model(), (3,)), policy=adaptive(always(1), always(0)))


@pytest.mark.parametrize(
    "policy",
    [
        FastVARPolicy(),
        FastVARPolicy(scales=HALF, layers=(0, 1)),
        SparseVARPolicy(scales=HALF),
        SkipVARPolicy(),
        LDPruningPolicy(energy_share=1, branch_stop=0, scales=HALF),
        ToMePolicy(),
        ToMePolicy(branches=("cross_attention", "ffn"), layers=(0.4, 1)),
    ],
    ids=lambda policy: policy.name,
)
def test_the_cost_told_beforehand_is_the_cost_counted(policy: PruningPolicy) -> None:
    schedule = scale_schedule(1.0, "0.06M")
    preset = PRESETS["embedded"]
    config = replace(
        preset,
        transformer=model().config,
        tokenizer=replace(preset.tokenizer, codebook_dim=6),
        text_encoder=replace(preset.text_encoder, width=128),
    )
    text = toy_text(model(), (12,))
    request = PolicyRequest(schedule, 1, 2, 3, 64, 2, False, "cpu")
    settings = toy_settings(schedule)
    told = plan_cost(policy, config, request, settings=settings, text_tokens=12).flops
    counted = count_flops(lambda: toy_run(model(), text, schedule, policy=policy))
    assert told == pytest.approx(counted, rel=0.05)


@pytest.mark.parametrize(
    "policy", [LDPruningPolicy(), adaptive(always(0), always(0))], ids=lambda policy: policy.name
)
def test_no_cost_is_told_where_the_picture_decides(policy: PruningPolicy) -> None:
    with pytest.raises(UserError, match="cannot be told beforehand"):
        plan_cost(policy, PRESETS["embedded"], request_of())
