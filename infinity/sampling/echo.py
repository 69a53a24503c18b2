"""Guidance that goes on after the unconditional half has stopped."""

import torch
from jaxtyping import Float
from torch import Tensor

from infinity.schedule import Grid
from infinity.tokens import PackedTokens


class GuidanceEcho:
    """Remembers where guidance pointed at the last scale that ran both halves.

    The difference of the two streams after the last layer, resized bilinearly, is added to the
    conditional stream of later scales: guidance changes little from one late scale to the next, and
    a second half would cost as much as the first.

    Source: ours.
    """

    def __init__(self) -> None:
        self._felt: tuple[PackedTokens, Grid] | None = None

    def hear(self, tokens: PackedTokens, grid: Grid) -> None:
        """Takes the stream of a scale that ran both halves; nothing is computed yet.

        A scale of which only some positions were computed says nothing.
        """
        if tokens.uniform and tokens.max_seqlen == grid[0] * grid[1]:
            self._felt = tokens, grid

    def added(self, tokens: PackedTokens, grid: Grid, share: float) -> PackedTokens:
        """``tokens`` of one half, moved by ``share`` of the difference; as they are if no scale
        before ran both halves to the end.
        """
        if self._felt is None:
            return tokens
        felt, seen = self._felt
        there = self._resized(felt, seen, grid)[tokens.row_ids(), tokens.indices]
        return tokens.with_x((tokens.x.float() + share * there).to(tokens.x.dtype))

    @staticmethod
    def _resized(felt: PackedTokens, seen: Grid, grid: Grid) -> Float[Tensor, "images n width"]:
        cond, uncond = felt.x.float().unflatten(0, (felt.rows, -1)).chunk(2)
        maps = (cond - uncond).unflatten(1, seen)
        for axis, size in zip((1, 2), grid, strict=True):
            maps = stretched(maps, axis, size)
        return maps.flatten(1, 2)


def stretched(maps: Tensor, axis: int, size: int) -> Tensor:
    """``maps`` sampled linearly at the centres of ``size`` cells along ``axis``.

    Along both axes of a map this is torch's bilinear resize without aligned corners, which walks
    the channels one by one (``docs/speed.md`` tells what that cost).
    """
    before = maps.shape[axis]
    at = (torch.arange(size, device=maps.device) + 0.5) * (before / size) - 0.5
    low = at.clamp(0, before - 1).long()
    high = (low + 1).clamp(max=before - 1)
    weight = (at.clamp(min=0) - low).view(-1, *[1] * (maps.ndim - 1 - axis))
    return torch.lerp(maps.index_select(axis, low), maps.index_select(axis, high), weight)
