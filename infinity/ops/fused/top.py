"""The highest scores of every row as ascending positions, in one launch and without a sort.

Shape legend: b rows, N positions, M chosen per row.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from infinity.ops.fused.spread import places_reference
from infinity.ops.fused.support import kernel, power_of_two, triton, usable

MOST = 8192
"""Positions of a row that the kernel can hold."""


@dataclass(frozen=True)
class Top:
    """What was chosen.

    Attributes:
        indices: chosen positions of every row, ascending.
        places: of every position, which of its row's chosen ones it is; −1 if none of them.
        bad: 1 for rows that held a NaN.
    """

    indices: Int64[Tensor, "b m"]
    places: Int32[Tensor, "b n"]
    bad: Int32[Tensor, " b"]


def reference(scores: Float[Tensor, "b n"], spread: Float[Tensor, " n"], count: int) -> Top:
    """See :func:`top_scores`."""
    bad = scores.isnan().any(1)
    flat = (scores == scores[:, :1]).all(1)
    used = torch.where((bad | flat)[:, None], spread, scores)
    ranked = used.sort(dim=1, descending=True, stable=True).indices
    # A radix sort's time goes with the bits of its keys.
    keys = ranked[:, :count].to(torch.int16 if scores.shape[1] < 1 << 15 else torch.int32)
    indices = keys.sort(dim=1).values.long()
    return Top(indices, places_reference(indices, scores.shape[1]), bad.int())


def top_scores(scores: Float[Tensor, "b n"], spread: Float[Tensor, " n"], count: int) -> Top:
    """The ``count`` highest scores of every row; ties go to the lower position.

    Args:
        scores: higher = chosen.
        spread: takes the place of rows that hold a NaN or whose scores are all equal.
        count: M, at least 1 and at most N.
    """
    rows, n = scores.shape
    if not usable(scores, "top") or scores.dtype != torch.float32 or n > MOST:
        return reference(scores, spread.to(scores.dtype), count)
    indices = torch.empty(rows, count, dtype=torch.int64, device=scores.device)
    places = torch.empty(rows, n, dtype=torch.int32, device=scores.device)
    bad = torch.empty(rows, dtype=torch.int32, device=scores.device)
    block = power_of_two(n)
    _top_kernel[(rows,)](
        scores.contiguous(),
        spread.float(),
        indices,
        places,
        bad,
        n,
        count,
        BLOCK=block,
        num_warps=min(16, max(1, block // 256)),
    )
    return Top(indices, places, bad)


if triton is not None:
    import triton.language as tl

    @kernel
    def _top_kernel(
        score_ptr, spread_ptr, index_ptr, place_ptr, bad_ptr, n, count, BLOCK: tl.constexpr
    ):
        # Counts that are wanted together travel in one 64-bit sum, 20 bits each.
        row = tl.program_id(0).to(tl.int64)
        i = tl.arange(0, BLOCK)
        valid = i < n
        scores = tl.load(score_ptr + row * n + i, mask=valid, other=0.0)
        strange = (valid & (scores != scores)).to(tl.int64)
        same = (valid & (scores == tl.load(score_ptr + row * n))).to(tl.int64)
        both = tl.sum(strange + (same << 20), 0)
        bad = both & 0xFFFFF
        spread = tl.load(spread_ptr + i, mask=valid, other=0.0)
        # Adding zero turns −0 into +0, which have different bits but tie.
        scores = tl.where((bad > 0) | ((both >> 20) == n), spread, scores) + 0.0
        bits = scores.to(tl.int32, bitcast=True)
        # Integers in the order of the numbers, shifted to start at 0.
        key = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) + 2147483648
        key = tl.where(valid, key, -1)
        least = tl.zeros((), tl.int64)
        for step in tl.static_range(16):
            unit = tl.full((), 1, tl.int64) << (30 - 2 * step)
            one = (key >= least + unit).to(tl.int64)
            two = (key >= least + 2 * unit).to(tl.int64)
            three = (key >= least + 3 * unit).to(tl.int64)
            found = tl.sum(one + (two << 20) + (three << 40), 0)
            digit = ((found & 0xFFFFF) >= count).to(tl.int64)
            digit += (((found >> 20) & 0xFFFFF) >= count).to(tl.int64)
            digit += ((found >> 40) >= count).to(tl.int64)
            least += digit * unit
        above, equal = (key > least).to(tl.int64), (key == least).to(tl.int64)
        left = count - tl.sum(above, 0)
        so_far = tl.cumsum(above + (equal << 20), 0)
        equal_so_far = so_far >> 20
        kept = (above > 0) | ((equal > 0) & (equal_so_far <= left))
        place = (so_far & 0xFFFFF) + tl.minimum(equal_so_far, left) - 1
        tl.store(index_ptr + row * count + place, i.to(tl.int64), mask=kept)
        tl.store(place_ptr + row * n + i, tl.where(kept, place, -1).to(tl.int32), mask=valid)
        tl.store(bad_ptr + row, (bad > 0).to(tl.int32))
