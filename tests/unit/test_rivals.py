"""The rules that the rival methods publish, each against an independent computation."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from infinity.config import PRESETS
from infinity.errors import UserError
from infinity.policy import (
    Branch,
    PolicyRequest,
    PolicyRun,
    PruningPolicy,
    RestoreContext,
    Rows,
    ScaleView,
)
from infinity.sampling.loop import ScaleEnd
from infinity.sampling.noise import PerImageNoise
from infinity.schedule import ScaleSchedule, scale_schedule
from infinity.tokens import pack
from infinity.transformer.model import InfinityTransformer
from stepvar_patch.cost import plan_cost
from stepvar_patch.experiments.metrics.flops import count_flops
from stepvar_patch.policies.fastvar import FastVARPolicy, FastVARRun, resize_area
from stepvar_patch.policies.ldpruning import LDPruningPolicy
from stepvar_patch.policies.skipvar import (
    LogisticFit,
    SkipDecision,
    SkipVARPolicy,
    preview_grid,
)
from stepvar_patch.policies.skipvar_features import preview_features
from stepvar_patch.policies.skipvar_fit import SkipRuns, fit, largest_saving
from stepvar_patch.policies.sparsevar import SparseVARPolicy, SparseVARRun
from stepvar_patch.policies.tome import ToMePolicy, match
from stepvar_patch.rules import ScaleRule
from stepvar_patch.scores.haar_energy import haar_energy
from stepvar_patch.scores.layer_change import layer_change, resize_scores
from stepvar_patch.scores.mean_distance import mean_distance
from tests.toy import toy_model, toy_run, toy_settings, toy_text


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


HALF = {"-2": ScaleRule(keep_ratio=0.5), "-1": ScaleRule(keep_ratio=0.5)}


def request_of(
    schedule: ScaleSchedule | None = None, *, images: int = 1, rows: int = 2, layers: int = 4
) -> PolicyRequest:
    schedule = schedule or scale_schedule(1.0, "0.06M")
    return PolicyRequest(schedule, images, rows, layers, 8, 2, False, "cpu")


def view_of(
    request: PolicyRequest, si: int, *, rows: Rows = "both", codes: Tensor | None = None
) -> ScaleView:
    h, w = request.schedule.grids[si]
    x = torch.randn(request.images * (2 if rows == "both" else 1), h * w, request.width)
    latent = torch.zeros(request.images, 6, *request.schedule.grids[-1])
    return ScaleView(latent, codes, x, (h, w), rows)


def mask_of(indices: Sequence[int], n: int) -> Tensor:
    mask = torch.zeros(n, dtype=torch.bool)
    mask[list(indices)] = True
    return mask


# FastVAR


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
            torch.testing.assert_close(out[row, ~mask], wide.flatten(2).mT[row, ~mask])
            assert torch.equal(out[row, mask], fresh.slice_rows(row, row + 1).x)


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
    expected = resize_area(half, (12, 12), (16, 16))
    pruned = out.abs().sum(-1) > 0
    assert int(pruned.sum()) == 256
    torch.testing.assert_close(out[pruned], expected[pruned])


# SparseVAR


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


# LD-Pruning


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


# SkipVAR


def test_preview_features_of_plain_and_detailed_pictures() -> None:
    flat = torch.zeros(1, 3, 16, 16)
    ramp = torch.linspace(-1, 1, 16).expand(1, 3, 16, 16)
    board = ((torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2.0 - 1).expand(1, 3, 16, 16)
    same = preview_features(ramp, ramp)
    assert same[0, 0] == 0
    moved, plain = preview_features(flat, ramp)[0], preview_features(flat, flat)[0]
    # grey rises by 1/15 a pixel inside, half of that at the repeated border; Sobel sums 8 of them
    assert float(moved[0]) == pytest.approx((14 * 8 / 15 + 2 * 4 / 15) / 16, rel=1e-4)
    assert plain.tolist() == [0, 0]
    fine, smooth = preview_features(flat, board)[0, 1], preview_features(flat, ramp)[0, 1]
    assert float(fine) == pytest.approx(0.5, abs=1e-5)  # the rest is the mean
    assert smooth < fine


def test_high_frequencies_are_those_outside_the_disc() -> None:
    picture = torch.rand(2, 3, 12, 20) * 2 - 1
    grey = (picture.mean(1) + 1) / 2
    share = preview_features(picture, picture)[:, 1]
    for image in range(2):
        inside = total = 0.0
        for v in range(12):
            for u in range(20):
                wave = torch.fft.fft2(grey[image])[v, u].abs().item()
                y, x = v - 12 * (v >= 6), u - 20 * (u >= 10)
                total += wave
                inside += wave * (y * y + x * x <= 4)  # radius ⌊0.4·12/2⌋ = 2
        assert float(share[image]) == pytest.approx(1 - inside / total, abs=1e-4)


def always(saving: int, classes: int = 4) -> LogisticFit:
    bias = tuple(1.0 if c == saving else 0.0 for c in range(classes))
    return LogisticFit(mean=(0, 0), scale=(1, 1), weights=((0.0, 0.0),) * classes, bias=bias)


def splitting(threshold: float, saving: int) -> LogisticFit:
    """``saving`` scales where the edge change is above ``threshold``, else none."""
    weights = tuple((1.0, 0.0) if c == saving else (0.0, 0.0) for c in range(4))
    bias = tuple(-9.0 if c not in (0, saving) else 0.0 for c in range(4))
    return LogisticFit(mean=(threshold, 0), scale=(1, 1), weights=weights, bias=bias)


def adaptive(drop: LogisticFit, rows: LogisticFit) -> SkipVARPolicy:
    decision = SkipDecision(drop=drop, rows=rows, after_scale=-4, preview_share=1 / 4)
    return SkipVARPolicy(scales={}, decision=decision)


def decode(latent: Tensor) -> Tensor:
    return latent[:, :3].tanh()


@cache
def model() -> InfinityTransformer:
    return toy_model()


def run_toy(
    lengths: tuple[int, ...], policy: PruningPolicy, ends: list[ScaleEnd] | None = None
) -> Tensor:
    text = toy_text(model(), lengths)
    return toy_run(model(), text, policy=policy, decode=decode, on_scale_end=ends)


@pytest.mark.parametrize("saving", [0, 1, 2, 3])
def test_skipvar_drops_as_many_scales_as_it_decides(saving: int) -> None:
    ends: list[ScaleEnd] = []
    out = run_toy((3, 5), adaptive(always(saving), always(0)), ends)
    assert len(ends) == 7 - saving
    fixed = SkipVARPolicy(scales={str(-k): ScaleRule(run=False) for k in range(1, saving + 1)})
    assert torch.equal(out, run_toy((3, 5), fixed))


@pytest.mark.parametrize("saving", [1, 3])
def test_skipvar_drops_rows_only_where_no_scale_is_dropped(saving: int) -> None:
    fixed = SkipVARPolicy(scales={str(-k): ScaleRule(rows="cond") for k in range(1, saving + 1)})
    rows = run_toy((3, 5), adaptive(always(0), always(saving)))
    assert torch.equal(rows, run_toy((3, 5), fixed))
    both = run_toy((3, 5), adaptive(always(1), always(saving)))
    assert torch.equal(both, run_toy((3, 5), adaptive(always(1), always(0))))


def test_skipvar_decides_image_by_image() -> None:
    ends: list[ScaleEnd] = []
    run_toy((3, 7, 5), SkipVARPolicy(scales={}), ends)
    grid = preview_grid(tuple(end.grid for end in ends), 1 / 4)
    assert grid == (8, 8)
    older, newer = (decode(F.interpolate(ends[k].latent, grid, mode="bilinear")) for k in (2, 3))
    changes = preview_features(older, newer)[:, 0].sort().values
    threshold = float(changes[:2].mean())  # one image below, two above
    policy = adaptive(splitting(threshold, 2), always(0))
    together = run_toy((3, 7, 5), policy)
    alone = [
        toy_run(
            model(),
            toy_text(model(), (length,), seed=1 + i),
            noise=PerImageNoise([i], "cpu"),
            policy=policy,
            decode=decode,
        )
        for i, length in enumerate((3, 7, 5))
    ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)
    dense = run_toy((3, 7, 5), SkipVARPolicy(scales={}))
    changed = (together - dense).abs().amax((1, 2, 3)) > 1e-3
    assert int(changed.sum()) == 2


@pytest.mark.parametrize("ratio", [1.0, 0.571, 2.5])
def test_the_preview_is_the_published_one_at_every_shape(ratio: float) -> None:
    grids = scale_schedule(ratio, "1M").grids
    h, w = preview_grid(grids, 1 / 64)
    share = h * w * 64 / (grids[-1][0] * grids[-1][1])
    assert 0.6 < share < 1.7
    if ratio == 1.0:
        assert (h, w) == (8, 8)


def test_fit_recovers_a_rule_and_tolerates_a_class_without_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(300, 2, generator=generator) * torch.tensor([5.0, 0.1])
    labels = (features[:, 0] > 2).long() + (features[:, 0] > 4).long()
    fitted = fit(features, labels, classes=4)
    agreement = [a == b for a, b in zip(fitted.choose(features), labels.tolist(), strict=True)]
    assert sum(agreement) >= 285
    assert 3 not in fitted.choose(features)
    assert fit(features, labels, classes=4) == fitted
    with pytest.raises(UserError, match="labels 0 … 2"):
        fit(features, labels, classes=2)
    with pytest.raises(UserError, match="no samples"):
        fit(features[:0], labels[:0], classes=4)


def test_labels_are_the_largest_saving_that_stays_similar() -> None:
    similarity = torch.tensor([[0.9, 0.8, 0.7], [0.95, 0.9, 0.86], [0.5, 0.4, 0.3]])
    assert largest_saving(similarity, 0.86).tolist() == [1, 3, 0]
    runs = SkipRuns(torch.tensor([[0.0, 0.1], [1.0, 0.2], [2.0, 0.3]]), similarity, similarity)
    decision = runs.decision(0.86)
    assert len(decision.drop.bias) == len(decision.rows.weights) == 4


# ToMe


@pytest.mark.parametrize("grid", [(4, 4), (5, 3)])
def test_tome_merges_the_most_similar_sources_into_their_destinations(
    grid: tuple[int, int],
) -> None:
    h, w = grid
    n, merged = h * w, 5
    x = torch.randn(2, n, 7)
    merge = match(x, grid, merged)
    assert merge.keep.counts == (n - merged,) * 2
    packed = merge.gather(x, merge.keep)
    corners = [y * w + u for y in range(0, h, 2) for u in range(0, w, 2)]
    sources = [i for i in range(n) if i not in corners]
    full = merge.copy_back(packed, RestoreContext(x, grid, 0, 0, "self_attention"))
    for row in range(2):
        similarity = F.cosine_similarity(x[row, sources][:, None], x[row, corners][None], dim=-1)
        ranked = similarity.amax(1).sort(descending=True).indices[:merged].tolist()
        groups = {i: [i] for i in range(n)}
        for rank in ranked:
            groups[corners[int(similarity[rank].argmax())]].append(sources[rank])
            del groups[sources[rank]]
        assert merge.keep.rows(row, row + 1).indices.tolist() == sorted(groups)
        for members in groups.values():
            mean = x[row, members].mean(0)
            for member in members:
                torch.testing.assert_close(full[row, member], mean)


def test_tome_merges_in_self_attention_only() -> None:
    toy, seen = toy_model(), dict[str, list[int]]()
    for branch in ("sa", "ca", "ffn"):
        counts = seen.setdefault(branch, [])
        getattr(next(iter(toy.layers())), branch).register_forward_hook(
            lambda _m, args, _out, c=counts: c.append(args[0].shape[1])
        )
    toy_run(toy, toy_text(toy, (3,)), policy=ToMePolicy())
    assert seen["sa"][-2:] == [72, 128]
    assert seen["ca"][-2:] == seen["ffn"][-2:] == [144, 256]


# Refusals

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
