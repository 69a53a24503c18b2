"""FastVAR's published rules, each against an independent computation."""

import pytest
import torch
from rival_calls import HALF, mask_of, request_of, view_of
from torch.nn import functional as F

from infinity.policy import Branch, RestoreContext, Rows
from infinity.schedule import scale_schedule
from infinity.tokens import pack
from stepvar_patch.policies.fastvar import FastVARPolicy, FastVARRun
from stepvar_patch.rules import ScaleRule
from stepvar_patch.scores.mean_distance import mean_distance
from tests.toy import toy_model, toy_run, toy_text


def test_mean_distance_is_the_squared_distance_to_the_rows_mean() -> None:
    x = torch.randn(2, 12, 5)
    expected = [[float(((t - row.mean(0)) ** 2).sum()) for t in row] for row in x]
    torch.testing.assert_close(mean_distance(x, (3, 4)), torch.tensor(expected))


def test_fastvar_computes_what_was_published_and_nothing_else() -> None:
    deep, schedule = toy_model(depth=4), scale_schedule(1.0, "0.06M")
    seen: dict[tuple[int, str], list[int]] = {}
    for layer, block in enumerate(deep.layers()):
        for branch in ("sa", "ca", "ffn"):
            counts = seen.setdefault((layer, branch), [])
            getattr(block, branch).register_forward_hook(
                lambda _m, args, _out, c=counts: c.append(args[0].shape[1])
            )
    toy_run(deep, toy_text(deep, (3, 5)), schedule, policy=FastVARPolicy(layers=(0.25, 0.75)))
    dense = [h * w for h, w in schedule.grids[:-2]]
    pruned = [*dense[:-2], 22, 32]  # 6×6 keeps 60 %, 8×8 keeps 50 %
    for (layer, _), counts in seen.items():
        assert counts == (pruned if layer in (1, 2) else dense)


def test_fastvar_fills_with_the_branch_outputs_of_the_last_dense_scale() -> None:
    request = request_of()
    run = FastVARPolicy(scales=HALF, layers=(0, 1)).start(request)
    assert isinstance(run, FastVARRun)
    branches: tuple[Branch, ...] = ("self_attention", "cross_attention", "ffn")
    old = {b: torch.randn(2, 64, 8) for b in branches}
    for si in range(6):
        run.plan_scale(si, view_of(request, si))
        assert run.events == (frozenset({"branch"}) if si == 4 else frozenset())
        for branch in branches if si == 4 else ():
            run.after("branch", si, 0, branch, old[branch])
    x = torch.randn(2, 144, 8)
    for branch in branches:
        plan = run.plan_branch(5, 0, branch, x)
        assert plan is not None
        assert plan.keep.counts == (72, 72)
        fresh = pack(torch.randn(2, 144, 8), plan.keep)
        out = plan.restore(fresh, RestoreContext(x, (12, 12), 5, 0, branch))
        wide = F.adaptive_avg_pool2d(old[branch].mT.reshape(2, 8, 8, 8), (12, 12))
        for row in range(2):
            best = mean_distance(x, (12, 12))[row].topk(72).indices
            mask = mask_of(best.tolist(), 144)
            change = wide.flatten(2).mT[row, ~mask]
            torch.testing.assert_close(out[row, ~mask], x[row, ~mask] + change)
            assert torch.equal(out[row, mask], x[row, mask] + fresh.slice_rows(row, row + 1).x)


@pytest.mark.parametrize("rows", ["cond", "uncond"])
def test_fastvar_fills_the_rows_that_are_left(rows: Rows) -> None:
    request = request_of(images=2)
    rules = {"-1": ScaleRule(keep_ratio=0.5, rows=rows)}
    run = FastVARPolicy(scales=rules, layers=(0, 1)).start(request)
    old = torch.randn(4, 144, 8)
    run.plan_scale(5, view_of(request, 5))
    run.after("branch", 5, 0, "ffn", old)
    assert run.plan_scale(6, view_of(request, 6)).rows == rows
    x = torch.randn(2, 256, 8)
    plan = run.plan_branch(6, 0, "ffn", x)
    assert plan is not None
    fresh = pack(torch.zeros(2, 256, 8), plan.keep)
    out = plan.restore(fresh, RestoreContext(x, (16, 16), 6, 0, "ffn"))
    half = old[:2] if rows == "cond" else old[2:]
    maps = half.unflatten(1, (12, 12)).movedim(-1, 1)
    expected = x + F.interpolate(maps, size=(16, 16), mode="area").flatten(2).mT
    pruned = (out != x).any(-1)
    assert int(pruned.sum()) == 256
    torch.testing.assert_close(out[pruned], expected[pruned])
