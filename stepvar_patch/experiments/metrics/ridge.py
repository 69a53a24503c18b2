"""Ridge regression, the probe that maps image features to text embeddings."""

import torch
from jaxtyping import Float
from torch import Tensor


def fit_ridge(
    x: Float[Tensor, "n d"], y: Float[Tensor, "n k"], penalty: float
) -> tuple[Float[Tensor, "d k"], Float[Tensor, " k"]]:
    """Weight and bias that minimise ``|x·weight + bias − y|² + penalty·|weight|²``; bias is free.

    Args:
        x: inputs; standardise them first, because the penalty treats all alike.
        y: targets.
        penalty: at least 0; with 0, ``x`` must have full column rank.

    Returns:
        Both in the dtype of ``x``, solved in float64.

    Raises:
        ValueError: the penalty is negative.
    """
    if penalty < 0:
        raise ValueError(f"penalty {penalty} must be at least 0")
    x_mean, y_mean = x.double().mean(0), y.double().mean(0)
    xc, yc = x.double() - x_mean, y.double() - y_mean
    gram = xc.T @ xc
    gram.diagonal().add_(penalty)
    weight = torch.linalg.solve(gram, xc.T @ yc)
    return weight.to(x.dtype), (y_mean - x_mean @ weight).to(x.dtype)
