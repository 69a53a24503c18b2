"""LD-Pruning's score: high-frequency energy of the previous scale's codes."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from infinity.schedule import Grid


def haar_energy(codes: Float[Tensor, "b d h w"], grid: Grid) -> Float[Tensor, "b n"]:
    """Smoothed Haar detail energy of ``codes``, resized to the token grid ``grid``; higher = keep.

    Non-overlapping 2×2 Haar analysis with factor ½; the column, row and diagonal responses squared
    and summed over bands and channels; 3×3 mean over the cells that exist; bilinear resize. An odd
    side repeats its last line first, which adds no energy across the seam.

    Source: LD-Pruning, spec pruning-methods §6 items 1 and 2; deviations: border cells average
    valid neighbours only, so that borders are not penalised.
    """
    codes = codes.float()
    height, width = codes.shape[-2:]
    if height % 2 or width % 2:
        codes = F.pad(codes, (0, width % 2, 0, height % 2), mode="replicate")
    a, b = codes[..., 0::2, 0::2], codes[..., 0::2, 1::2]
    c, d = codes[..., 1::2, 0::2], codes[..., 1::2, 1::2]
    bands = ((a - b + c - d) / 2, (a + b - c - d) / 2, (a - b - c + d) / 2)
    energy = sum((band.square().sum(dim=1, keepdim=True) for band in bands), start=0 * a[:, :1])
    energy = F.avg_pool2d(energy, 3, stride=1, padding=1, count_include_pad=False)
    return F.interpolate(energy, size=grid, mode="bilinear", align_corners=False).flatten(1)
