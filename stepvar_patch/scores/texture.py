"""StepVAR's texture score: how much a token differs from its surroundings."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from infinity.ops.fused.roughness import roughness
from infinity.schedule import Grid

TextureFilter = Literal["mean3", "laplacian", "haar"]


def texture_score(
    x: Float[Tensor, "b n width"], grid: Grid, filter: TextureFilter = "mean3"
) -> Float[Tensor, "b n"]:
    """Energy of the high-pass of the feature map, summed over channels; higher = keep.

    Args:
        x: features on ``grid``.
        grid: ``(h, w)`` with ``h·w = N``.
        filter: ``mean3``, the map minus its 3×3 mean; ``laplacian``, differences to the four
            neighbours; ``haar``, detail energy of each 2×2 cell, the same for its four tokens.
            Every filter counts only positions inside the map, so borders are not favoured.

    Source: StepVAR (spec pruning-methods §1.3) for ``mean3``; its treatment of borders and the
        other filters are ours (S7).
    """
    h, w = grid
    if filter == "mean3":
        return roughness(x, grid)
    shifted: Tensor = (
        x.float() - x[:, :1].float()
    )  # exactly zero, not rounding noise, on a constant map
    maps: Tensor = shifted.unflatten(1, (h, w)).permute(0, 3, 1, 2)
    if filter == "laplacian":
        padded = F.pad(maps, (1, 1, 1, 1), mode="replicate")
        around: Tensor = (
            padded[:, :, :-2, 1:-1]
            + padded[:, :, 2:, 1:-1]
            + padded[:, :, 1:-1, :-2]
            + padded[:, :, 1:-1, 2:]
        )
        return (4 * maps - around).square().sum(1).flatten(1)
    padded = F.pad(maps, (0, w % 2, 0, h % 2), mode="replicate")
    a, b = padded[..., 0::2, 0::2], padded[..., 0::2, 1::2]
    c, d = padded[..., 1::2, 0::2], padded[..., 1::2, 1::2]
    bands = torch.stack([a - b + c - d, a + b - c - d, a - b - c + d])
    energy: Tensor = bands.square().sum((0, 2)) / 4
    return energy.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, :h, :w].flatten(1)
