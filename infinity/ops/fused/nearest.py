"""The nearest chosen position of every position on a grid, in two launches.

Shape legend: b rows, N = h·w positions, M chosen per row.
"""

import torch
from jaxtyping import Int64
from torch import Tensor

from infinity.ops.fused.spread import places_of
from infinity.ops.fused.support import kernel, power_of_two, triton

MOST = 96
"""Longest side of a grid whose rows a program can hold."""


def nearest_places(indices: Int64[Tensor, "b m"], grid: tuple[int, int]) -> Int64[Tensor, "b n"]:
    """For every position, which of its row's chosen ones (0 … M−1) is nearest.

    Distances are Euclidean and compared as integers; ties go to the lowest position.

    Args:
        indices: positions, on a device where the kernels run.
        grid: ``(h, w)``, no side longer than :data:`MOST`.
    """
    rows = len(indices)
    h, w = grid
    places = places_of(indices, h * w)
    nearest = torch.empty(rows, h * w, dtype=torch.int64, device=indices.device)
    block = power_of_two(h * w)
    _nearest_kernel[(h, rows)](
        places,
        nearest,
        h,
        w,
        BLOCK_H=power_of_two(h),
        BLOCK_W=power_of_two(w),
        num_warps=8 if block >= 1024 else 4,
    )
    return nearest


if triton is not None:
    import triton.language as tl

    @kernel
    def _nearest_kernel(place_ptr, nearest_ptr, h, w, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr):
        row, y = tl.program_id(1).to(tl.int64), tl.program_id(0)
        i, x = tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_W)
        valid = (i < h)[:, None] & (x < w)[None]
        places = tl.load(place_ptr + row * h * w + i[:, None] * w + x[None], mask=valid, other=-1)
        # The nearest one of every column, the higher of two: distance and line in one number.
        away = tl.where(i > y, i - y, y - i) * h + i
        column = tl.min(tl.where(places >= 0, away[:, None], h * h + h), 0)
        reachable = (column < h * h + h) & (x < w)
        high, line = column // h, column % h
        # Columns along the first axis, positions of this line along the second.
        across = x[:, None] - x[None]
        apart = (high * high)[:, None] + across * across
        far = 2147483647 // (h * w) - 1
        key = tl.where(reachable[:, None], apart, far) * (h * w) + (line * w + x)[:, None]
        best = tl.min(tl.where(reachable[:, None], key, 2147483647), 0) % (h * w)
        place = tl.load(place_ptr + row * h * w + best, mask=x < w, other=0)
        tl.store(nearest_ptr + row * h * w + y * w + x, place.to(tl.int64), mask=x < w)
