"""From kept tokens back to the dense map: the nearest kept neighbour, and other restorations.

Shape legend: b rows, N positions, h × w grid, T packed tokens, M kept per row, C width, D bits of a
token, d latent channels.

Inside a layer or over a range of layers (``context.branch == "layer"``) the packed tokens hold
*states*; inside a branch they hold gated *changes*, and the restoration returns dense changes
(``infinity.policy.BranchPlan``). Kept positions always get their own fresh value, bit for bit.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from infinity.ops.fused import usable
from infinity.ops.fused.nearest import MOST, nearest_places
from infinity.policy import CodeRestore, Restore, RestoreContext, ScaleView
from infinity.schedule import Grid
from infinity.tokens import KeepSet, PackedTokens, unpack

_FAR = 1 << 40


def nearest_source(keep: KeepSet, grid: Grid) -> Int64[Tensor, "rows n"]:
    """For every position, which of its row's kept tokens (0 … M−1, in the set's order) is nearest.

    Distances are Euclidean on the grid and compared as integers, hence exact; ties go to the lowest
    flat index. Two passes, the nearest kept token inside each column and then the best column, take
    O(N·(h + w)) per row instead of O(N·M).

    Source: spec pruning-methods §1.8; deviation: separable instead of brute force, same result.
    """
    h, w = grid
    if keep.uniform and usable(keep.indices, "nearest") and max(grid) <= MOST:
        return nearest_places(keep.indices.view(len(keep.counts), -1), grid)
    n, rows, device = h * w, len(keep.counts), keep.indices.device
    row_ids = keep.row_ids()
    places = torch.arange(len(row_ids), device=device) - keep.starts()[row_ids]
    slots = torch.full((rows * n,), -1, device=device)
    slots[row_ids * n + keep.indices] = places
    y, x = torch.arange(h, device=device), torch.arange(w, device=device)
    vertical = (y[:, None] - y).abs() * h + y
    kept = (slots >= 0).view(rows, 1, h, w)
    inside = torch.where(kept, vertical[None, :, :, None], _FAR).amin(2)
    reachable, distance, source_y = inside < _FAR, inside // h, inside % h
    key = (distance**2 * n + source_y * w + x)[:, :, None] + (x[:, None] - x) ** 2 * n
    key = torch.where(reachable[:, :, None], key, _FAR).amin(3)
    return slots.view(rows, n).gather(1, (key % n).view(rows, n))


def _copied(fresh: PackedTokens, grid: Grid) -> Int64[Tensor, "b n"]:
    """Index into the packed tokens of every position's nearest kept token."""
    return (
        nearest_source(KeepSet(fresh.indices, fresh.counts), grid)
        + fresh.cu_seqlens[:-1, None].long()
    )


def nearest_state(fresh: PackedTokens, context: RestoreContext) -> Float[Tensor, "b n width"]:
    """Every pruned position takes the whole state of the nearest kept token.

    Source: StepVAR as published (spec pruning-methods §1.5).
    """
    source = _copied(fresh, context.grid)
    if context.branch == "layer":
        return fresh.x[source]
    return unpack(fresh, (_kept(fresh, context) + fresh.x)[source] - context.before)


def nearest_change(fresh: PackedTokens, context: RestoreContext) -> Float[Tensor, "b n width"]:
    """Every pruned position keeps what it knew and adds the change of the nearest kept token.

    Source: ours (spec pruning-methods §1.7, S10).
    """
    source = _copied(fresh, context.grid)
    if context.branch != "layer":
        return fresh.x[source]
    return unpack(fresh, context.before + (fresh.x - _kept(fresh, context))[source])


def zero_change(fresh: PackedTokens, context: RestoreContext) -> Float[Tensor, "b n width"]:
    """Pruned positions leave the pruned layers as they entered them. Source: ours."""
    before = context.before
    return unpack(fresh, before if context.branch == "layer" else torch.zeros_like(before))


def _kept(fresh: PackedTokens, context: RestoreContext) -> Float[Tensor, "total width"]:
    """The stream before pruning, at the kept positions."""
    b, n, _ = context.before.shape
    return context.before.reshape(b * n, -1)[fresh.row_ids() * n + fresh.indices]


def code_copy(
    codes: Float[Tensor, "total bits"], keep: KeepSet, view: ScaleView
) -> Float[Tensor, "images n bits"]:
    """Pruned positions take the sampled code of the nearest kept token. Source: ours (S11)."""
    source = nearest_source(keep, view.grid)
    return codes[source + keep.starts()[:, None]]


def code_zero(
    codes: Float[Tensor, "total bits"], keep: KeepSet, view: ScaleView
) -> Float[Tensor, "images n bits"]:
    """Pruned positions add nothing to the latent. Source: ours (S11)."""
    n = view.grid[0] * view.grid[1]
    return _over(codes, keep, codes.new_zeros(len(keep.counts), n, codes.shape[1]))


def code_base(gain: float) -> CodeRestore:
    """Restoration that repeats the previous scale's codes, times ``gain``, at pruned positions.

    Source: LD-Pruning (spec pruning-methods §6), gain 1; other gains are ours.
    """

    def based(codes: Tensor, keep: KeepSet, view: ScaleView) -> Tensor:
        if view.codes is None:
            return code_zero(codes, keep, view)
        patchify = codes.shape[1] != view.codes.shape[1]
        factor = 2 if patchify else 1
        size = (view.grid[0] * factor, view.grid[1] * factor)
        base = F.interpolate(view.codes.float(), size=size, mode="nearest-exact")
        cells = F.pixel_unshuffle(base, factor)
        return _over(codes, keep, gain * cells.flatten(2).mT)

    return based


def _over(codes: Tensor, keep: KeepSet, base: Tensor) -> Tensor:
    b, n, width = base.shape
    flat = base.reshape(b * n, width).to(codes.dtype)
    return flat.index_copy(0, keep.row_ids() * n + keep.indices, codes).view(b, n, width)


Restoration = Literal["nearest_state", "nearest_change", "zero_change", "code_copy", "code_zero"]
"""Restorations by name, for settings; ``code_base`` belongs to LD-Pruning."""


def stream_restore(name: Restoration) -> Restore | None:
    """The named restoration of the stream; None if the name is one of codes."""
    named: dict[Restoration, Restore] = {
        "nearest_state": nearest_state,
        "nearest_change": nearest_change,
        "zero_change": zero_change,
    }
    return named.get(name)


def code_restore(name: Restoration) -> CodeRestore | None:
    """The named restoration of codes; None if the name is one of the stream."""
    named: dict[Restoration, CodeRestore] = {"code_copy": code_copy, "code_zero": code_zero}
    return named.get(name)
