"""LD-Pruning's published rules, each against an independent computation."""

import logging
from collections.abc import Sequence

import pytest
import torch
from rival_calls import request_of, view_of

from infinity.policy import PolicyRun
from stepvar_patch.policies.ldpruning import LDPruningPolicy
from stepvar_patch.rules import ScaleRule
from stepvar_patch.scores.haar_energy import haar_energy


def test_haar_energy_on_one_cell_and_on_constant_codes() -> None:
    a, b, c, d = cell = torch.randn(4)
    bands = [(a - b + c - d) / 2, (a + b - c - d) / 2, (a - b - c + d) / 2]
    energy = haar_energy(cell.view(1, 1, 2, 2), (1, 1))
    torch.testing.assert_close(energy, sum(band**2 for band in bands).view(1, 1))
    assert haar_energy(torch.full((1, 3, 7, 5), 0.4), (9, 6)).abs().max() < 1e-12


def test_haar_energy_is_found_where_the_detail_is() -> None:
    codes = torch.full((1, 4, 12, 12), 0.5)
    codes[:, :, 8:, 8:] = torch.randn(1, 4, 4, 4).sign() / 2
    energy = haar_energy(codes, (16, 16)).view(16, 16)
    assert energy[:6, :6].max() == 0
    assert energy.argmax() // 16 >= 8
    assert energy.argmax() % 16 >= 8


def test_ldpruning_keeps_the_smallest_prefix_of_the_energy() -> None:
    request = request_of(images=3)
    run = LDPruningPolicy(energy_share=0.5, branch_stop=0).start(request)
    codes = torch.randn(3, 6, 12, 12).sign() / 6**0.5
    codes[1, :, :, 6:] = 6**-0.5
    codes[2] = 6**-0.5  # no detail at all: an even spread
    plan = run.plan_scale(6, view_of(request, 6, codes=codes))
    assert plan.keep is not None
    assert plan.restore_codes is not None
    energy = haar_energy(codes, (16, 16))
    for row in (0, 1):
        ranked = energy[row].sort(descending=True).values.double()
        prefix = next(m for m in range(1, 257) if ranked[:m].sum() >= ranked.sum() / 2)
        assert plan.keep.counts[row] == prefix
    assert plan.keep.counts[1] < plan.keep.counts[0]
    assert plan.keep.counts[2] == 128


def test_ldpruning_caps_the_kept_share() -> None:
    request = request_of(images=2)
    rules = {"-1": ScaleRule(keep_ratio=0.25)}
    run = LDPruningPolicy(scales=rules, energy_share=0.5, branch_stop=0).start(request)
    codes = torch.full((2, 6, 12, 12), 6**-0.5)
    codes[0] = torch.randn(6, 12, 12).sign() / 6**0.5
    codes[1, :, 0, 0] *= -1
    keep = run.plan_scale(6, view_of(request, 6, codes=codes)).keep
    assert keep is not None
    assert keep.counts[0] == 64
    assert keep.counts[1] < 20
    strongest = haar_energy(codes, (16, 16))[0].topk(64).values.min()
    assert haar_energy(codes, (16, 16))[0, keep.rows(0, 1).indices].min() >= strongest


@pytest.mark.parametrize(("rungs", "step"), [(16, 16), (10, 26), (300, 1), (1, 256)])
def test_ldpruning_rounds_counts_up_to_rungs(rungs: int, step: int) -> None:
    request = request_of(images=3)
    codes = torch.randn(3, 6, 12, 12).sign() / 6**0.5
    codes[1, :, :, 6:] = 6**-0.5
    exact, rounded = (
        LDPruningPolicy(branch_stop=0, rungs=n)
        .start(request)
        .plan_scale(6, view_of(request, 6, codes=codes))
        for n in (0, rungs)
    )
    assert exact.keep is not None
    assert rounded.keep is not None
    wanted = [min(256, -(-count // step) * step) for count in exact.keep.counts]
    assert list(rounded.keep.counts) == wanted
    for row in range(3):
        kept = set(rounded.keep.rows(row, row + 1).indices.tolist())
        assert kept >= set(exact.keep.rows(row, row + 1).indices.tolist())


def test_ldpruning_rounds_no_count_above_its_cap() -> None:
    request = request_of(images=1)
    rules = {"-1": ScaleRule(keep_ratio=0.25)}
    run = LDPruningPolicy(scales=rules, branch_stop=0, rungs=3).start(request)
    codes = torch.randn(1, 6, 12, 12).sign() / 6**0.5
    keep = run.plan_scale(6, view_of(request, 6, codes=codes)).keep
    assert keep is not None
    assert keep.counts == (64,)


def gaps(run: PolicyRun, si: int, sizes: Sequence[float]) -> None:
    """Reports logits of one bit whose guidance distance is ``sizes`` per image."""
    n = 256 if si == 6 else 144 if si == 5 else 64
    cond = torch.cat([torch.full((n, 1, 2), size) for size in sizes])
    run.after("logits", si, -1, None, (cond, torch.zeros_like(cond)))


@pytest.mark.parametrize(("second", "stops"), [(1.1, True), (1.2, False)])
def test_ldpruning_ends_the_unconditional_rows_when_every_image_has_settled(
    second: float, stops: bool
) -> None:
    request = request_of(images=2)
    run = LDPruningPolicy(scales={}, branch_stop=0.15, first_stop_scale=-2).start(request)
    for si in range(4):
        run.plan_scale(si, view_of(request, si))
        assert not run.events
    run.plan_scale(4, view_of(request, 4))
    assert run.events == {"logits"}
    gaps(run, 4, (1.0, 1.0))
    run.plan_scale(5, view_of(request, 5))
    gaps(run, 5, (1.05, second))
    plan = run.plan_scale(6, view_of(request, 6))
    assert plan.rows == ("cond" if stops else "both")
    assert bool(run.events) != stops


def test_ldpruning_says_when_there_is_nothing_to_stop(caplog: pytest.LogCaptureFixture) -> None:
    request = request_of()
    run = LDPruningPolicy().start(request)
    run.plan_scale(3, view_of(request, 3))
    with caplog.at_level(logging.WARNING):
        run.after("logits", 3, -1, None, (torch.zeros(36, 1, 2), None))
    assert "nothing to end" in caplog.text
