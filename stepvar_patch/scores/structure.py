"""StepVAR's structure score: how far a token lies along the strongest axes of variation.

Shape legend: b rows, N positions, C width, q components.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from infinity.ops.fused import usable
from infinity.ops.fused.principal import first_direction, projection_length
from infinity.ops.fused.top import MOST
from infinity.schedule import Grid


def principal_directions(
    x: Float[Tensor, "b n width"],
    *,
    iterations: int = 5,
    components: int = 1,
    start: Float[Tensor, "b width components"] | None = None,
) -> Float[Tensor, "b width components"]:
    """The first principal directions of every row's tokens, by power iteration; fp32.

    A direction along which nothing varies is the zero vector. Nothing waits for the device.

    Args:
        x: features of the tokens; the mean over tokens is removed here.
        iterations: passes ``v ← X̂ᵀX̂v / ‖X̂ᵀX̂v‖`` per component.
        components: q; each further direction is found in what the earlier ones leave.
        start: start vectors, for example the last scale's result; None, a zero vector or a NaN
            starts from the remaining token of largest norm.

    Source: StepVAR (spec pruning-methods §1.2): mean removed, power iteration without forming the
        covariance, one component. The start vectors, 5 iterations and more than one component are
        ours (S5, S6).
    """
    if components == 1 and _fused(x):
        given = None if start is None else start[:, :, 0].contiguous()
        return first_direction(x.contiguous(), iterations, given)[:, :, None]
    rest = _centred(x)
    rows = torch.arange(len(rest), device=rest.device)
    found = []
    for j in range(components):
        v = rest[rows, rest.square().sum(-1).argmax(1), :, None]
        if start is not None:
            given = start[:, :, j : j + 1]
            v = torch.where(given.square().sum(1, keepdim=True) > 0, given, v)
        for _ in range(iterations):
            v = _unit(rest.mT @ (rest @ _unit(v)))
        found.append(v)
        if j + 1 < components:
            rest = rest - (rest @ v) @ v.mT
    return torch.cat(found, dim=2)


def structure_score(
    x: Float[Tensor, "b n width"], directions: Float[Tensor, "b width components"]
) -> Float[Tensor, "b n"]:
    """Length of every centred token's projection on ``directions``; higher = keep.

    One component gives ``|X̂·v|``; the sign of a direction does not matter.

    Source: StepVAR (spec pruning-methods §1.2); the root of summed squares for q > 1 is ours (S6).
    """
    if directions.shape[2] == 1 and _fused(x):
        return projection_length(x.contiguous(), directions[:, :, 0])
    return (_centred(x) @ directions).square().sum(-1).sqrt()


def structure_edges(
    x: Float[Tensor, "b n width"], directions: Float[Tensor, "b width components"], grid: Grid
) -> Float[Tensor, "b n"]:
    """Length of the spatial gradient of the projection on ``directions``; higher = keep.

    The projection itself is largest inside regions and passes through zero at the outline between
    them; its gradient is largest at the outline. Differences are central, one-sided at the border.

    Source: ours; StepVAR publishes :func:`structure_score`.
    """
    h, w = grid
    maps = (_centred(x) @ directions).mT.unflatten(2, (h, w))
    padded = F.pad(maps, (1, 1, 1, 1), mode="replicate")
    down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    across = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    return (down.square() + across.square()).sum(1).sqrt().flatten(1)


def _fused(x: Tensor) -> bool:
    return usable(x, "principal") and x.dtype == torch.float32 and x.shape[1] <= MOST


def _centred(x: Tensor) -> Tensor:
    """Tokens minus their mean; exactly zero where all tokens are the same."""
    shifted = x.float() - x[:, :1].float()
    return shifted - shifted.mean(1, keepdim=True)


def _unit(v: Tensor) -> Tensor:
    return v / v.square().sum(1, keepdim=True).sqrt().clamp_min(1e-20)
