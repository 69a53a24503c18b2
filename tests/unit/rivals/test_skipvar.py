"""SkipVAR's published rules, each against an independent computation."""

import pytest
import torch
from rival_calls import adaptive, always, decode, model, run_toy, splitting
from torch.nn import functional as F

from infinity.errors import UserError
from infinity.sampling.loop import ScaleEnd
from infinity.sampling.noise import PerImageNoise
from infinity.schedule import scale_schedule
from stepvar_patch.policies.skipvar import SkipVARPolicy, preview_grid
from stepvar_patch.policies.skipvar_features import preview_features
from stepvar_patch.policies.skipvar_fit import SkipRuns, fit, largest_saving
from stepvar_patch.rules import ScaleRule
from tests.toy import toy_run, toy_text


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
    agreement = [
        a == b for a, b in zip(fitted.choose(features).tolist(), labels.tolist(), strict=True)
    ]
    assert sum(agreement) >= 285
    assert 3 not in fitted.choose(features).tolist()
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
