"""Guidance that goes on after the unconditional half has stopped."""

import pytest
import torch
from torch.nn import functional as F

from infinity.errors import UserError
from infinity.sampling.echo import GuidanceEcho, stretched
from infinity.sampling.loop import ScaleEnd
from infinity.schedule import Grid, scale_schedule
from infinity.tokens import KeepSet, pack, pack_all
from infinity.transformer.guidance import Guidance
from stepvar_patch.policies import DensePolicy, StepVARPolicy
from stepvar_patch.rules import ScaleRule
from tests.toy import toy_model, toy_run, toy_settings, toy_text

LATE = ("-3", "-2", "-1")


def stopped(echo: float, keep: float = 1.0) -> dict[str | int, ScaleRule]:
    rule = ScaleRule(rows="cond", guidance_echo=echo, keep_ratio=keep)
    return dict.fromkeys(LATE, rule)


def test_the_difference_of_the_halves_is_added_where_one_half_runs() -> None:
    both, cond = torch.randn(4, 6, 8), torch.randn(2, 6, 8)
    echo = GuidanceEcho()
    tokens = pack_all(cond)
    assert echo.added(tokens, (2, 3), 0.5) is tokens
    echo.hear(pack_all(both), (2, 3))
    moved = echo.added(tokens, (2, 3), 0.5).x.view(2, 6, 8)
    torch.testing.assert_close(moved, cond + 0.5 * (both[:2] - both[2:]))


def test_kept_tokens_get_the_difference_of_their_place() -> None:
    both, cond = torch.randn(4, 4, 8), torch.randn(2, 16, 8)
    echo = GuidanceEcho()
    echo.hear(pack_all(both), (2, 2))
    whole = echo.added(pack_all(cond), (4, 4), 1.0).x.view(2, 16, 8)
    keep = KeepSet.of_rows(torch.tensor([[0, 5, 7], [1, 2, 15]]))
    some = echo.added(pack(cond, keep), (4, 4), 1.0).x.view(2, 3, 8)
    for row, places in enumerate(([0, 5, 7], [1, 2, 15])):
        assert torch.equal(some[row], whole[row, places])


def test_a_scale_computed_in_part_is_not_remembered() -> None:
    both = torch.randn(4, 6, 8)
    echo = GuidanceEcho()
    echo.hear(pack_all(both), (2, 3))
    echo.hear(pack(torch.randn(4, 12, 8), KeepSet.of_rows(torch.arange(6).expand(4, 6))), (3, 4))
    moved = echo.added(pack_all(both[:2]), (2, 3), 1.0).x.view(2, 6, 8)
    torch.testing.assert_close(moved, 2 * both[:2] - both[2:])


@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_the_picture_changes_from_the_first_scale_without_the_other_half(keep: float) -> None:
    model, text = toy_model(), toy_text(toy_model(), (3, 5))
    ends: dict[float, list[ScaleEnd]] = {0.0: [], 0.5: []}
    for share, seen in ends.items():
        policy = StepVARPolicy(scales=stopped(share, keep), restore="code_zero")
        toy_run(model, text, policy=policy, on_scale_end=seen)
    same = [torch.equal(a.logits, b.logits) for a, b in zip(*ends.values(), strict=True)]
    assert same == [True] * 4 + [False] * 3


@pytest.mark.parametrize("guided", [False, True])
def test_nothing_is_added_where_no_half_ended_on_logits(guided: bool) -> None:
    model, text = toy_model(), toy_text(toy_model(), (3, 5))
    settings = toy_settings(
        scale_schedule(1.0, "0.06M"),
        guidance_scale=3.0 if guided else 1.0,
        guidance=Guidance(frozenset({1}), False),
    )
    drawn = [
        toy_run(model, text, settings=settings, policy=DensePolicy(scales=stopped(share)))
        for share in (0.0, 0.5)
    ]
    assert torch.equal(*drawn)


def test_an_echo_beside_both_rows_is_refused() -> None:
    model, text = toy_model(), toy_text(toy_model(), (3,))
    rules = stopped(0.5) | {"-4": ScaleRule(guidance_echo=0.5)}
    with pytest.raises(UserError, match=r"scales\.-4\.guidance_echo is 0\.5"):
        toy_run(model, text, policy=DensePolicy(scales=rules))


@pytest.mark.parametrize(("seen", "grid"), [((3, 5), (4, 7)), ((6, 6), (8, 8)), ((5, 4), (5, 3))])
def test_stretching_along_both_axes_is_a_bilinear_resize(seen: Grid, grid: Grid) -> None:
    maps = torch.randn(2, *seen, 6, generator=torch.Generator().manual_seed(1))
    ours = stretched(stretched(maps, 1, grid[0]), 2, grid[1])
    theirs = F.interpolate(maps.permute(0, 3, 1, 2), size=grid, mode="bilinear")
    assert torch.allclose(ours, theirs.permute(0, 2, 3, 1), atol=1e-6)
