"""SparseVAR's published rules, each against an independent computation."""

import pytest
import torch
from rival_calls import HALF, request_of, view_of

from stepvar_patch.policies.sparsevar import SparseVARPolicy, SparseVARRun
from stepvar_patch.scores.layer_change import layer_change, resize_scores


def test_layer_change_and_its_resize() -> None:
    a, b = torch.randn(1, 4, 3), torch.randn(1, 4, 3)
    change = layer_change(a, b)
    torch.testing.assert_close(change, ((a - b) ** 2).sum(-1) / 3)
    assert torch.equal(resize_scores(change, (2, 2), (2, 2)), change)
    corners = resize_scores(change, (2, 2), (4, 4)).view(4, 4)[::3, ::3].flatten()
    torch.testing.assert_close(corners, change[0])


def test_sparsevar_keeps_anchors_and_the_largest_changes() -> None:
    request = request_of(images=2)
    run = SparseVARPolicy(scales=HALF, anchor_stride=4, layer=0.75).start(request)
    assert isinstance(run, SparseVARRun)
    run.plan_scale(4, view_of(request, 4))
    assert run.events == {"layer"}
    before, after = torch.zeros(4, 64, 8), torch.zeros(4, 64, 8)
    after[0, 9], after[1, 40] = 3.0, 2.0
    after[2:] = 7.0  # the unconditional rows have no say
    run.after("layer", 4, 2, None, (before, torch.randn(4, 64, 8)))  # another layer
    run.after("layer", 4, 3, None, (before, after))
    plan = run.plan_scale(5, view_of(request, 5))
    assert plan.keep is not None
    assert plan.keep.counts == (72, 72)
    anchors = {y * 12 + x for y in (2, 6, 10) for x in (2, 6, 10)}
    wide = resize_scores(layer_change(before, after)[:2], (8, 8), (12, 12))
    for row in range(2):
        kept = set(plan.keep.rows(row, row + 1).indices.tolist())
        assert anchors <= kept
        assert set((wide[row] > 0).nonzero().flatten().tolist()) <= kept


def test_sparsevar_reads_a_pruned_scale_through_its_nearest_kept_tokens() -> None:
    request = request_of()
    run = SparseVARPolicy(scales=HALF, anchor_stride=0).start(request)
    assert isinstance(run, SparseVARRun)
    run.plan_scale(4, view_of(request, 4))
    run.after("layer", 4, 3, None, (torch.zeros(2, 64, 8), torch.randn(2, 64, 8)))
    keep = run.plan_scale(5, view_of(request, 5)).keep
    assert keep is not None
    fresh = torch.arange(72.0)[None, :, None].expand(2, 72, 8).sqrt()
    run.after("layer", 5, 3, None, (torch.zeros(2, 72, 8), fresh))
    assert run.change is not None
    kept = [divmod(int(i), 12) for i in keep.indices]
    for position in range(144):
        y, x = divmod(position, 12)
        distances = [(v - y) ** 2 + (u - x) ** 2 for v, u in kept]
        nearest = distances.index(min(distances))
        assert float(run.change[0, position]) == pytest.approx(nearest, abs=1e-4)
