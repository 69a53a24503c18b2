"""What SkipVAR looks at: how far two early pictures still differ, and how fine the newer one is."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def preview_features(
    older: Float[Tensor, "b 3 h w"], newer: Float[Tensor, "b 3 h w"]
) -> Float[Tensor, "b 2"]:
    """Per image: mean absolute change of the Sobel magnitude, and the share of Fourier amplitude
    outside a centred disc of radius ``⌊0.2·min(h, w)⌋`` in the newer picture.

    Args:
        older: picture of the summed codes before the decision scale, in [−1, 1].
        newer: picture after it.

    Source: SkipVAR's released program, spec pruning-methods §4.
    """
    before, after = ((picture.float().mean(dim=1) + 1) / 2 for picture in (older, newer))
    edges = (sobel_magnitude(after) - sobel_magnitude(before)).abs().mean(dim=(1, 2))
    return torch.stack([edges, high_frequency_share(after)], dim=1)


def sobel_magnitude(grey: Float[Tensor, "b h w"]) -> Float[Tensor, "b h w"]:
    """Gradient magnitude by 3×3 Sobel filters; the border line is repeated."""
    slope = torch.arange(-1, 2, dtype=grey.dtype, device=grey.device)
    smooth = 2 - slope.abs()
    kernels = torch.stack([smooth[:, None] * slope, slope[:, None] * smooth])[:, None]
    slopes = F.conv2d(F.pad(grey[:, None], (1, 1, 1, 1), mode="replicate"), kernels)
    return slopes.square().sum(dim=1).sqrt()


def high_frequency_share(grey: Float[Tensor, "b h w"]) -> Float[Tensor, " b"]:
    """Share in [0, 1] of Fourier amplitude outside the centred disc."""
    h, w = grey.shape[-2:]
    amplitude = torch.fft.fftshift(torch.fft.fft2(grey), dim=(-2, -1)).abs()
    y = torch.arange(h, device=grey.device)[:, None] - h // 2
    x = torch.arange(w, device=grey.device) - w // 2
    outside = y.square() + x.square() > int(0.4 * min(h, w) / 2) ** 2
    fine, whole = (a.flatten(1).sum(dim=1) for a in (amplitude * outside, amplitude))
    share: Tensor = fine / whole.clamp_min(1e-12)
    return share
