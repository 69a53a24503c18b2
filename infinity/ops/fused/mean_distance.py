"""Squared distance of tokens to their row's mean, in two launches.

Shape legend: b rows, N positions, C width.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from infinity.ops.fused.support import kernel, power_of_two, triton, usable, warps_of

TOGETHER = 4
"""Tokens of a program, which share the row's vectors."""


def reference(x: Float[Tensor, "b n width"]) -> Float[Tensor, "b n"]:
    """See :func:`mean_distance`."""
    x = x.float()
    return (x - x.mean(dim=1, keepdim=True)).square().sum(dim=-1)


def mean_distance(x: Float[Tensor, "b n width"]) -> Float[Tensor, "b n"]:
    """Squared distance of every token to the mean token of its row, fp32."""
    if not usable(x, "mean_distance") or x.dtype != torch.float32:
        return reference(x)
    return distance(x.contiguous(), mean_token(x.contiguous()))


def mean_token(x: Float[Tensor, "b n width"]) -> Float[Tensor, "b width"]:
    """The mean token of every row, found relative to the first one: equal tokens have exactly
    themselves as their mean.

    Args:
        x: contiguous fp32 on a device where the kernels run.
    """
    return _column_sums(x, x, None)


def weighted_sum(
    x: Float[Tensor, "b n width"], centre: Float[Tensor, "b width"], weights: Float[Tensor, "b n"]
) -> Float[Tensor, "b width"]:
    """Sum over every row's tokens of their weight times what they differ from its ``centre``; as
    :func:`mean_token`.
    """
    return _column_sums(x, centre, weights)


def _column_sums(x: Tensor, centre: Tensor, weights: Tensor | None) -> Tensor:
    rows, n, width = x.shape
    out = x.new_empty(rows, width)
    _column_sums_kernel[(-(-width // 16), rows)](
        x,
        centre,
        x if weights is None else weights,
        out,
        n,
        width,
        WEIGHTED=weights is not None,
        BLOCK_N=512,
        BLOCK_C=16,
        num_warps=8,
    )
    return out


def distance(
    x: Float[Tensor, "b n width"], centre: Float[Tensor, "b width"]
) -> Float[Tensor, "b n"]:
    """Squared distance of every token to its row's ``centre``; as :func:`mean_token`."""
    rows, n, width = x.shape
    out, block = x.new_empty(rows, n), power_of_two(width)
    _distance_kernel[(-(-n // TOGETHER), rows)](
        x, centre, out, n, width, TOGETHER=TOGETHER, BLOCK=block, num_warps=warps_of(block)
    )
    return out


if triton is not None:
    import triton.language as tl

    @kernel
    def _column_sums_kernel(
        x_ptr,
        centre_ptr,
        weight_ptr,
        out_ptr,
        n,
        width,
        WEIGHTED: tl.constexpr,
        BLOCK_N: tl.constexpr,
        BLOCK_C: tl.constexpr,
    ):
        row = tl.program_id(1).to(tl.int64)
        c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
        inside = c < width
        # The mean is found relative to the first token, which is added again in the end.
        first = row if WEIGHTED else row * n
        centre = tl.load(centre_ptr + first * width + c, mask=inside, other=0.0)
        total = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
        for begin in range(0, n, BLOCK_N):
            token = begin + tl.arange(0, BLOCK_N)
            mask = (token < n)[:, None] & inside[None]
            at = (row * n + token)[:, None] * width + c[None]
            away = tl.load(x_ptr + at, mask=mask, other=0.0) - centre[None]
            if WEIGHTED:
                weight = tl.load(weight_ptr + row * n + token, mask=token < n, other=0.0)
                away *= weight[:, None]
            total += tl.where(mask, away, 0.0)
        out = tl.sum(total, 0)
        if not WEIGHTED:
            out = out / n + centre
        tl.store(out_ptr + row * width + c, out, mask=inside)

    @kernel
    def _distance_kernel(
        x_ptr, centre_ptr, out_ptr, n, width, TOGETHER: tl.constexpr, BLOCK: tl.constexpr
    ):
        row = tl.program_id(1).to(tl.int64)
        c = tl.arange(0, BLOCK)
        inside = c < width
        centre = tl.load(centre_ptr + row * width + c, mask=inside, other=0.0)
        # All loads of a program are under way at once.
        token = tl.program_id(0) * TOGETHER + tl.arange(0, TOGETHER)
        mask = (token < n)[:, None] & inside[None]
        at = (row * n + token)[:, None] * width + c[None]
        away = tl.where(mask, tl.load(x_ptr + at, mask=mask, other=0.0) - centre[None], 0.0)
        tl.store(out_ptr + row * n + token, tl.sum(away * away, 1), mask=token < n)
