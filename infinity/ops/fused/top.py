"""The highest scores of every row as ascending positions, in one launch and without a sort.

Shape legend: b rows, N positions, M chosen per row.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from infinity.ops.fused.support import kernel, power_of_two, triton, usable

MOST = 8192
"""Positions of a row that the kernel can hold."""


@dataclass(frozen=True)
class Top:
    """What was chosen.

    Attributes:
        indices: chosen positions of every row, ascending.
        bad: 1 for rows that held a NaN.
    """

    indices: Int64[Tensor, "b m"]
    bad: Int32[Tensor, " b"]


def reference(scores: Float[Tensor, "b n"], spread: Float[Tensor, " n"], count: int) -> Top:
    """See :func:`top_scores`."""
    bad = scores.isnan().any(1)
    flat = (scores == scores[:, :1]).all(1)
    used = torch.where((bad | flat)[:, None], spread, scores)
    ranked = used.sort(dim=1, descending=True, stable=True).indices
    # A radix sort's time goes with the bits of its keys.
    keys = ranked[:, :count].to(torch.int16 if scores.shape[1] < 1 << 15 else torch.int32)
    return Top(keys.sort(dim=1).values.long(), bad.int())


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
    bad = torch.empty(rows, dtype=torch.int32, device=scores.device)
    block = power_of_two(n)
    _top_kernel[(rows,)](
        scores.contiguous(),
        spread.float(),
        indices,
        bad,
        n,
        count,
        BLOCK=block,
        num_warps=min(16, max(1, block // 256)),
    )
    return Top(indices, bad)


if triton is not None:
    import triton.language as tl

    @kernel
    def _top_kernel(score_ptr, spread_ptr, index_ptr, bad_ptr, n, count, BLOCK: tl.constexpr):
        row = tl.program_id(0).to(tl.int64)
        i = tl.arange(0, BLOCK)
        valid = i < n
        scores = tl.load(score_ptr + row * n + i, mask=valid, other=0.0)
        bad = tl.sum((valid & (scores != scores)).to(tl.int32), 0)
        same = tl.sum((valid & (scores == tl.load(score_ptr + row * n))).to(tl.int32), 0)
        spread = tl.load(spread_ptr + i, mask=valid, other=0.0)
        # Adding zero turns −0 into +0, which have different bits but tie.
        scores = tl.where((bad > 0) | (same == n), spread, scores) + 0.0
        bits = scores.to(tl.int32, bitcast=True)
        # Integers in the order of the numbers, shifted to start at 0.
        key = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) + 2147483648
        key = tl.where(valid, key, -1)
        least = tl.zeros((), tl.int64)
        for step in tl.static_range(32):
            wanted = least + (1 << (31 - step))
            enough = tl.sum((key >= wanted).to(tl.int32), 0) >= count
            least = tl.where(enough, wanted, least)
        above = key > least
        left = count - tl.sum(above.to(tl.int32), 0)
        equal = key == least
        kept = above | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= left))
        place = tl.cumsum(kept.to(tl.int32), 0) - 1
        tl.store(index_ptr + row * count + place, i.to(tl.int64), mask=kept)
        tl.store(bad_ptr + row, (bad > 0).to(tl.int32))
