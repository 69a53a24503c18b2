"""Structural similarity of pictures with their references."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

_WINDOW = 11
_SIGMA = 1.5
_C1, _C2 = 0.01**2, 0.03**2
_LUMA = (0.299, 0.587, 0.114)
_PIXELS_AT_ONCE = {"cpu": 1 << 16, "cuda": 1 << 22}
"""Of a batch of pictures: a CPU's caches hold few, and a GPU has little to do with few."""


def ssim(
    images: Float[Tensor, "b 3 h w"], references: Float[Tensor, "b 3 h w"]
) -> Float[Tensor, " b"]:
    """Mean structural similarity of the luma, at most 1, which only equal pictures reach.

    The window is a Gaussian of 11 × 11 pixels and σ = 1.5; only windows that lie inside the
    picture count.

    Args:
        images: values in [0, 1], at least 11 × 11 pixels.
        references: of the same pictures, likewise.

    Raises:
        ValueError: the pictures are smaller than the window.

    Source: Wang, Bovik, Sheikh and Simoncelli 2004, sec. III-B, eq. 13, K1 = 0.01, K2 = 0.03.
    Deviation: sample covariances with weight 1 instead of n/(n−1), as their Gaussian form has it.
    """
    height, width = images.shape[2:]
    if min(height, width) < _WINDOW:
        raise ValueError(f"SSIM needs {_WINDOW} × {_WINDOW} pixels or more, not {height} × {width}")
    some = max(1, _PIXELS_AT_ONCE[images.device.type] // (height * width))
    pairs = zip(images.split(some), references.split(some), strict=True)
    return torch.cat([_ssim(_luma(x), _luma(y)) for x, y in pairs])


def _ssim(x: Float[Tensor, "b h w"], y: Float[Tensor, "b h w"]) -> Float[Tensor, " b"]:
    maps = _blur(torch.cat([x, y, x * x, y * y, x * y]))
    mean_x, mean_y, xx, yy, xy = maps.chunk(5)
    variance_x, variance_y = xx - mean_x**2, yy - mean_y**2
    covariance = xy - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    structure = (2 * covariance + _C2) / (variance_x + variance_y + _C2)
    return (luminance * structure).mean(dim=(1, 2))


def _luma(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b h w"]:
    weights = torch.tensor(_LUMA, dtype=torch.float64, device=images.device)
    return (images.double() * weights[:, None, None]).sum(1)


def _blur(maps: Float[Tensor, "n h w"]) -> Float[Tensor, "n hv wv"]:
    offsets = torch.arange(_WINDOW, dtype=maps.dtype, device=maps.device) - _WINDOW // 2
    kernel = torch.exp(-offsets.square() / (2 * _SIGMA**2))
    kernel = kernel / kernel.sum()
    rows = functional.conv2d(maps[:, None], kernel.view(1, 1, -1, 1))
    return functional.conv2d(rows, kernel.view(1, 1, 1, -1))[:, 0]
