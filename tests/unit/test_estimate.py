"""Bootstrap intervals on data whose answer is known."""

import numpy as np
import pytest
import torch

from stepvar_patch.experiments.estimate import DISTANCE_RESAMPLES, Bootstrap, around
from stepvar_patch.experiments.metrics.frechet import (
    frechet_distance,
    gaussian,
    resampled_frechet_distances,
)
from stepvar_patch.experiments.metrics.kernel_distance import (
    kernel_distance,
    resampled_kernel_distances,
)


def test_the_interval_of_a_mean_has_the_width_that_theory_gives() -> None:
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = Bootstrap([str(i) for i in range(400)]).mean(values)
    assert found.value == pytest.approx(values.mean())
    assert found.n == 400
    assert found.low is not None
    assert found.high is not None
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_images_of_one_prompt_are_drawn_together() -> None:
    values = np.repeat(np.random.default_rng(0).normal(size=50), 8)
    together = Bootstrap([str(i // 8) for i in range(400)]).mean(values)
    apart = Bootstrap([str(i) for i in range(400)]).mean(values)
    assert together.high - together.low > 2 * (apart.high - apart.low)


def test_values_that_are_not_known_do_not_count() -> None:
    found = Bootstrap(["a", "b", "c"]).mean([1.0, float("nan"), 3.0])
    assert (found.value, found.n) == (2.0, 2)
    none = Bootstrap(["a"]).mean([float("nan")])
    assert none.value is None
    assert none.missing.startswith("missing: ")


@pytest.mark.parametrize("metric", ["mean", "median"])
def test_pictures_of_one_prompt_have_no_interval(metric: str) -> None:
    single = getattr(Bootstrap(["a", "a", "b"]), metric)([4.0, 5.0, float("nan")])
    assert (single.value, single.low, single.high, single.n) == (4.5, None, None, 2)


@pytest.mark.parametrize("values", [[5.0, 1.0, 3.0], [4.0, 1.0, 3.0, 2.0]])
def test_the_median_and_its_resamples_agree_with_numpy(values: list[float]) -> None:
    bootstrap = Bootstrap([str(i) for i in range(len(values))])
    found = bootstrap.median(values)
    repeated = [np.median(np.repeat(values, row.astype(int))) for row in bootstrap.weights]
    low, high = np.percentile(repeated, [2.5, 97.5])
    assert found.value == np.median(values)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_kernel_distances_of_resamples_scatter_around_the_value() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(200, 6), torch.randn(300, 6) + 0.5
    value, resampled = resampled_kernel_distances(
        a, b, Bootstrap([str(i) for i in range(200)]).weights[:DISTANCE_RESAMPLES]
    )
    assert value == pytest.approx(kernel_distance(a, b))
    estimate = around(value, resampled, 200)
    assert np.mean(resampled) == pytest.approx(value, abs=0.3 * (estimate.high - estimate.low))
    again = [kernel_distance(torch.randn(200, 6), b) for _ in range(30)]
    assert np.std(resampled) == pytest.approx(np.std(again), rel=0.6)


def test_resampled_distances_keep_the_pictures_of_a_prompt_together() -> None:
    torch.manual_seed(0)
    a = torch.randn(50, 6).repeat_interleave(8, 0) + 0.01 * torch.randn(400, 6)
    b, mean, covariance = torch.randn(300, 6), torch.zeros(6), torch.eye(6)
    groups = [str(i // 8) for i in range(400)], [str(i) for i in range(400)]
    together, apart = (Bootstrap(one).weights[:DISTANCE_RESAMPLES] for one in groups)
    for spread in (
        lambda weights: np.std(resampled_kernel_distances(a, b, weights)[1]),
        lambda weights: np.std(resampled_frechet_distances(a, mean, covariance, weights)),
    ):
        assert spread(together) > 2 * spread(apart)


def test_a_resample_that_is_the_sample_has_its_frechet_distance() -> None:
    torch.manual_seed(0)
    x, mean, covariance = torch.randn(90, 5).double(), torch.ones(5), torch.eye(5)
    (found,) = resampled_frechet_distances(x, mean, covariance, np.ones((1, 90)))
    assert found == pytest.approx(frechet_distance(*gaussian(x), mean, covariance), rel=1e-5)
    repeated = resampled_frechet_distances(x[:2], mean, covariance, np.array([[2.0, 1], [1, 0]]))
    rows = x[[0, 0, 1]]
    assert repeated == [
        pytest.approx(frechet_distance(*gaussian(rows), mean, covariance), rel=1e-5)
    ]
