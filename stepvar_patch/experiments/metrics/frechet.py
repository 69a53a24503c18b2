"""Fréchet distance of Gaussians, and the projection that makes it usable with few images."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def fit_pca(x: Float[Tensor, "n d"], k: int) -> tuple[Float[Tensor, " d"], Float[Tensor, "d k"]]:
    """Mean of the rows and their ``k`` leading principal directions, strongest first.

    Raises:
        ValueError: there are not more than ``k`` rows.
    """
    if len(x) <= k:
        raise ValueError(f"{k} principal directions need more than {k} rows, not {len(x)}")
    mean = x.double().mean(0)
    centred = x.double() - mean
    directions = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :k]
    return mean.to(x.dtype), directions.to(x.dtype)


def frechet_distance(
    mean_a: Float[Tensor, " k"],
    covariance_a: Float[Tensor, "k k"],
    mean_b: Float[Tensor, " k"],
    covariance_b: Float[Tensor, "k k"],
) -> float:
    """``|μa − μb|² + tr(Σa + Σb − 2(Σa Σb)^½)``; lower is closer, and small samples read high.

    Source: Dowson and Landau 1982, eq. 4; Heusel et al. 2017, sec. 3.
    """
    root_a = _root(covariance_a.double())
    cross = _root(root_a @ covariance_b.double() @ root_a)
    trace = covariance_a.double().trace() + covariance_b.double().trace() - 2 * cross.trace()
    return float((mean_a.double() - mean_b.double()).square().sum() + trace)


def few_frechet_distance(
    x: Float[Tensor, "n k"], mean: Float[Tensor, " k"], covariance: Float[Tensor, "k k"]
) -> float:
    """`frechet_distance` of the rows' Gaussian to another one, through n × n matrices.

    With fewer rows than dimensions the rows' covariance is ``CᵀC``, and ``CᵀCΣ`` has the nonzero
    eigenvalues of ``CΣCᵀ``.
    """
    centre = x.double().mean(0)
    c = (x.double() - centre) / (len(x) - 1) ** 0.5
    values = torch.linalg.eigvalsh(c @ covariance.double() @ c.T).clamp_min(0)
    trace = c.square().sum() + covariance.double().trace() - 2 * values.sqrt().sum()
    return float((centre - mean.double()).square().sum() + trace)


def gaussian(x: Float[Tensor, "n k"]) -> tuple[Float[Tensor, " k"], Float[Tensor, "k k"]]:
    """Mean and covariance of the rows."""
    return x.mean(0), torch.cov(x.T)


def resampled_frechet_distances(
    x: Float[Tensor, "n k"],
    mean: Float[Tensor, " k"],
    covariance: Float[Tensor, "k k"],
    weights: Float[np.ndarray, "r n"],
) -> list[float]:
    """`frechet_distance` of resamples of the rows to another Gaussian.

    Args:
        x: rows that are resampled.
        mean: of the other Gaussian.
        covariance: likewise.
        weights: how often each resample has each row; resamples of fewer than two are left out.
    """
    rows = x.double() - mean.double()
    w = torch.from_numpy(weights).to(rows)
    w = w[w.sum(1) >= 2]
    totals = w.sum(1)
    centres = w @ rows / totals[:, None]
    moments = torch.einsum("rn,nk,nl->rkl", w, rows, rows)
    spreads = moments - totals[:, None, None] * centres[:, :, None] * centres[:, None, :]
    covariances = spreads / (totals - 1)[:, None, None]
    root = _root(covariance.double())
    values = torch.linalg.eigvalsh(root @ covariances @ root).clamp_min(0)
    traces = covariances.diagonal(dim1=1, dim2=2).sum(1) + covariance.double().trace()
    found: list[float] = (centres.square().sum(1) + traces - 2 * values.sqrt().sum(1)).tolist()
    return found


def _root(matrix: Float[Tensor, "k k"]) -> Float[Tensor, "k k"]:
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    root: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    return root
