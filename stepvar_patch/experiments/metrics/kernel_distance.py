"""Kernel inception distance: unbiased, so it is usable with a few hundred images."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def kernel_distance(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> float:
    """Squared maximum mean discrepancy with the cubic kernel ``(x·y/d + 1)³``; lower is closer.

    Unbiased: zero in expectation for two samples of one distribution, and slightly negative at
    times.

    Raises:
        ValueError: either side has fewer than two rows.

    Source: Bińkowski et al. 2018, sec. 3; computed over all rows at once instead of over blocks.
    """
    n, m = len(a), len(b)
    if n < 2 or m < 2:
        raise ValueError(f"kernel distance needs two rows on each side, not {n} and {m}")
    x, y = a.double(), b.double()
    xx, yy, xy = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    within_x = (xx.sum() - xx.diagonal().sum()) / (n * (n - 1))
    within_y = (yy.sum() - yy.diagonal().sum()) / (m * (m - 1))
    return float(within_x + within_y - 2 * xy.mean())


def _kernel(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    return (x @ y.T / x.shape[1] + 1) ** 3


def resampled_kernel_distances(
    a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], weights: Float[np.ndarray, "r n"]
) -> tuple[float, list[float]]:
    """The kernel distance and its values on resamples of ``a``; ``b`` stays as it is.

    Pairs of one row with its own copy are left out, as in the distance itself.

    Args:
        a: rows that are resampled.
        b: rows of the reference.
        weights: how often each resample has each row.

    Raises:
        ValueError: either side has fewer than two rows.
    """
    value = kernel_distance(a, b)
    m = len(b)
    x, y = a.double(), b.double()
    within, across = _kernel(x, x), _kernel(x, y).mean(1)
    within = within - within.diagonal().diag()
    yy = _kernel(y, y)
    constant = (yy.sum() - yy.diagonal().sum()) / (m * (m - 1))
    w = torch.from_numpy(weights).to(x)
    count = w.sum(1)
    pairs = count.square() - w.square().sum(1)
    some = pairs > 0  # a resample of one row alone has no pair
    found = (((w @ within) * w).sum(1) / pairs + constant - 2 * (w @ across) / count)[some]
    return value, found.tolist()
