"""Chosen tokens taken out of the dense map, and put back over what the others get.

Shape legend: b rows, N positions, M chosen per row, C width, h×w grids.
"""

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor
from torch.nn import functional as F

from infinity.ops.fused.support import kernel, power_of_two, triton, usable, warps_of


def take(x: Float[Tensor, "b n width"], indices: Int64[Tensor, " total"]) -> Tensor:
    """The tokens of every row at its positions, ``(b·M, C)``: row ``r`` has entries
    ``[r·M, (r + 1)·M)`` of ``indices``.
    """
    rows, n, width = x.shape
    per_row = len(indices) // rows
    if not usable(x, "spread"):
        row = torch.arange(len(indices), device=x.device) // per_row
        return x.reshape(rows * n, width).index_select(0, row * n + indices)
    x = x.contiguous()
    out, block = x.new_empty(len(indices), width), power_of_two(width)
    _take_kernel[(len(indices),)](
        x, indices, out, n, width, per_row, BLOCK=block, num_warps=warps_of(block)
    )
    return out


def places_reference(indices: Int64[Tensor, "b m"], n: int) -> Int32[Tensor, "b n"]:
    """See :func:`places_of`."""
    places = torch.full((len(indices), n), -1, dtype=torch.int32, device=indices.device)
    order = torch.arange(indices.shape[1], dtype=torch.int32, device=indices.device)
    return places.scatter_(1, indices, order.expand(indices.shape))


def places_of(indices: Int64[Tensor, "b m"], n: int) -> Int32[Tensor, "b n"]:
    """Of each of ``n`` positions, which of its row's chosen ones it is; −1 if none of them.

    Args:
        indices: chosen positions of every row, each once, in any order.
        n: N.
    """
    if not usable(indices, "spread"):
        return places_reference(indices, n)
    rows, count = indices.shape
    places = torch.empty(rows, n, dtype=torch.int32, device=indices.device)
    _places_kernel[(-(-n // 64), rows)](
        indices.contiguous(), places, n, count, BLOCK_N=64, BLOCK_M=64, num_warps=4
    )
    return places


def area_filled_reference(
    before: Float[Tensor, "b n width"],
    fresh: Float[Tensor, "total width"],
    places: Int32[Tensor, "b n"],
    old: Float[Tensor, "b n_old width"],
    grid: tuple[int, int],
    old_grid: tuple[int, int],
    gate: Float[Tensor, "b width"] | None = None,
) -> Float[Tensor, "b n width"]:
    """See :func:`area_filled`."""
    rows = len(before)
    maps = old.unflatten(1, old_grid).movedim(-1, 1)
    rest = F.interpolate(maps, size=grid, mode="area").flatten(2).mT
    chosen = fresh.float().unflatten(0, (rows, -1))
    if gate is not None:
        chosen = chosen * gate[:, None]
    own = torch.take_along_dim(chosen, places.clamp_min(0).long()[..., None], 1)
    return before + torch.where(places[..., None] >= 0, own, rest)


def area_filled(
    before: Float[Tensor, "b n width"],
    fresh: Float[Tensor, "total width"],
    places: Int32[Tensor, "b n"],
    old: Float[Tensor, "b n_old width"],
    grid: tuple[int, int],
    old_grid: tuple[int, int],
    gate: Float[Tensor, "b width"] | None = None,
) -> Float[Tensor, "b n width"]:
    """``before`` plus a change: the fresh one where there is one, else the old map averaged over
    the area that each cell of ``grid`` covers.

    Args:
        before: fp32.
        fresh: changes of the chosen tokens, equally many per row.
        places: of every position, which of its row's fresh changes it has; −1 for none.
        old: changes on ``old_grid``, fp32.
        grid: ``(h, w)`` of ``before``.
        old_grid: of ``old``.
        gate: factor on the fresh changes of every row, fp32.
    """
    if not usable(before, "spread"):
        return area_filled_reference(before, fresh, places, old, grid, old_grid, gate)
    before, old = before.contiguous(), old.contiguous()
    rows, n, width = before.shape
    out, block = torch.empty_like(before), power_of_two(width)
    _area_filled_kernel[(n, rows)](
        before,
        fresh,
        places,
        old,
        before if gate is None else gate,
        out,
        n,
        width,
        len(fresh) // rows,
        0 if gate is None else gate.stride(0),
        *grid,
        *old_grid,
        HAS_GATE=gate is not None,
        BLOCK=block,
        num_warps=warps_of(block),
        # A fused multiply-add would round otherwise than the same steps taken one by one.
        enable_fp_fusion=False,
    )
    return out


if triton is not None:
    import triton.language as tl

    @kernel
    def _take_kernel(x_ptr, index_ptr, out_ptr, n, width, per_row, BLOCK: tl.constexpr):
        place = tl.program_id(0).to(tl.int64)
        c = tl.arange(0, BLOCK)
        inside = c < width
        source = (place // per_row) * n + tl.load(index_ptr + place)
        x = tl.load(x_ptr + source * width + c, mask=inside, other=0.0)
        tl.store(out_ptr + place * width + c, x, mask=inside)

    @kernel
    def _places_kernel(
        index_ptr, place_ptr, n, count, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr
    ):
        row = tl.program_id(1).to(tl.int64)
        position = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
        found = tl.zeros((BLOCK_N,), tl.int32)
        for begin in range(0, count, BLOCK_M):
            m = begin + tl.arange(0, BLOCK_M)
            index = tl.load(index_ptr + row * count + m, mask=m < count, other=-1)
            equal = index[None] == position[:, None]
            found += tl.sum(tl.where(equal, (m + 1)[None], 0), 1)
        tl.store(place_ptr + row * n + position, found - 1, mask=position < n)

    @kernel
    def _area_filled_kernel(
        before_ptr,
        fresh_ptr,
        place_ptr,
        old_ptr,
        gate_ptr,
        out_ptr,
        n,
        width,
        per_row,
        gate_stride,
        h,
        w,
        old_h,
        old_w,
        HAS_GATE: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        row, token = tl.program_id(1).to(tl.int64), tl.program_id(0)
        c = tl.arange(0, BLOCK)
        inside = c < width
        at = (row * n + token) * width + c
        x = tl.load(before_ptr + at, mask=inside, other=0.0)
        place = tl.load(place_ptr + row * n + token)
        if place >= 0:
            own = tl.load(fresh_ptr + (row * per_row + place) * width + c, mask=inside, other=0.0)
            own = own.to(tl.float32)
            if HAS_GATE:
                own *= tl.load(gate_ptr + row * gate_stride + c, mask=inside, other=0.0)
            x += own
        else:
            i, j = token // w, token % w
            top, bottom = i * old_h // h, ((i + 1) * old_h + h - 1) // h
            left, right = j * old_w // w, ((j + 1) * old_w + w - 1) // w
            total = tl.zeros((BLOCK,), tl.float32)
            for y in range(top, bottom):
                for z in range(left, right):
                    cell = (row * old_h + y) * old_w + z
                    total += tl.load(old_ptr + cell * width + c, mask=inside, other=0.0)
            x += total / ((bottom - top) * (right - left))
        tl.store(out_ptr + at, x, mask=inside)
