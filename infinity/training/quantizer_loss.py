"""The differentiable multi-scale quantiser that a tokenizer trains through.

Source: spec bsq-vae §7; BSQ (arXiv 2406.07548) for the per-bit entropy; Infinity (arXiv
2412.04431), sec. 3.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from infinity.schedule import Grid
from infinity.tokenizer.quantizer import area_down, codes_from_bits, resize, to_bits

INVERSE_TEMPERATURE = 100.0
COMMIT_WEIGHT = 0.25
ENTROPY_WEIGHT = 0.1


class QuantizedScale(NamedTuple):
    """One scale's codes (straight-through to the residual) and the terms of its loss."""

    codes: Tensor
    commitment: Tensor
    sample_entropy: Tensor
    batch_entropy: Tensor

    @property
    def loss(self) -> Float[Tensor, ""]:
        entropy = self.sample_entropy - self.batch_entropy
        return COMMIT_WEIGHT * self.commitment + ENTROPY_WEIGHT * entropy / INVERSE_TEMPERATURE


def _binary_entropy(p: Tensor) -> Tensor:
    return -p * torch.log(p + 1e-8) - (1 - p) * torch.log(1 - p + 1e-8)


def quantize_scale(residual: Float[Tensor, "b d h w"]) -> QuantizedScale:
    """Unit-norm codes of one scale with their commitment and entropy terms.

    The entropies factorise over bits, so they cost O(d) instead of 2^d. Low sample entropy means
    confident bits; high batch entropy means bits that are used evenly.
    """
    d = residual.shape[1]
    u = F.normalize(residual, dim=1, eps=1e-12)
    c = codes_from_bits(to_bits(u.detach()))
    p = torch.sigmoid(-4 * INVERSE_TEMPERATURE * u / d**0.5)
    return QuantizedScale(
        codes=u + (c - u).detach(),
        commitment=(u - c).square().mean(),
        sample_entropy=_binary_entropy(p).sum(dim=1).mean(),
        batch_entropy=_binary_entropy(p.mean(dim=(0, 2, 3))).sum(),
    )


def quantize_scales(
    f: Float[Tensor, "b d h w"], grids: Sequence[Grid], kept: Sequence[bool] | None = None
) -> tuple[list[Float[Tensor, "b d h w"]], list[Float[Tensor, ""]]]:
    """Upsampled codes of every kept scale, straight-through at each scale, and their losses.

    The residual is not detached: the gradient runs through the normalisation of every scale. The
    latent is the sum of the codes.

    Args:
        f: encoder features.
        grids: ``(h, w)`` per scale, coarse to fine.
        kept: False drops a scale (its codes are zero, the residual passes on untouched); None keeps
            all.
    """
    size = (f.shape[2], f.shape[3])
    residual, codes, losses = f, [], []
    for grid, keep in zip(grids, kept or [True] * len(grids), strict=True):
        if keep:
            scale = quantize_scale(area_down(residual, grid))
            codes.append(resize(scale.codes, size))
            losses.append(scale.loss)
            residual = residual - codes[-1]
    return codes, losses
