"""The first principal direction of every row's tokens; a pass of the iteration is two launches.

Shape legend: b rows, N positions, C width.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from infinity.ops.fused.mean_distance import TOGETHER, distance, mean_token, weighted_sum
from infinity.ops.fused.support import kernel, power_of_two, triton, warps_of


def first_direction(
    x: Float[Tensor, "b n width"], iterations: int, start: Float[Tensor, "b width"] | None = None
) -> Float[Tensor, "b width"]:
    """Unit vector along which the tokens vary most; zero where nothing varies.

    Args:
        x: contiguous fp32 on a device where the kernels run, at most 8192 tokens.
        iterations: at least 1.
        start: vectors to start from; None, a zero vector or a NaN starts from the centred token of
            largest norm.
    """
    rows, n, width = x.shape
    mean = mean_token(x)
    norms, v = distance(x, mean), x.new_empty(rows, width)
    _largest_kernel[(rows,)](
        x,
        mean,
        norms,
        v,
        n,
        width,
        BLOCK_N=power_of_two(n),
        BLOCK_C=power_of_two(width),
        num_warps=8,
    )
    if start is not None:
        v = torch.where(start.square().sum(1, keepdim=True) > 0, start, v)
    for _ in range(iterations):
        v = weighted_sum(x, mean, _projected(x, mean, v, False))
    return v / v.square().sum(1, keepdim=True).sqrt().clamp_min(1e-20)


def projection_length(
    x: Float[Tensor, "b n width"], direction: Float[Tensor, "b width"]
) -> Float[Tensor, "b n"]:
    """Length of every centred token's projection; ``x`` as of :func:`first_direction`."""
    return _projected(x, mean_token(x), direction, True)


def _projected(x: Tensor, mean: Tensor, direction: Tensor, absolute: bool) -> Tensor:
    rows, n, width = x.shape
    out, block = x.new_empty(rows, n), power_of_two(width)
    _project_kernel[(-(-n // TOGETHER), rows)](
        x,
        mean,
        direction.contiguous(),
        out,
        n,
        width,
        ABSOLUTE=absolute,
        TOGETHER=TOGETHER,
        BLOCK=block,
        num_warps=warps_of(block),
    )
    return out


if triton is not None:
    import triton.language as tl

    @kernel
    def _largest_kernel(
        x_ptr,
        mean_ptr,
        norm_ptr,
        out_ptr,
        n,
        width,
        BLOCK_N: tl.constexpr,
        BLOCK_C: tl.constexpr,
    ):
        row = tl.program_id(0).to(tl.int64)
        i = tl.arange(0, BLOCK_N)
        norms = tl.load(norm_ptr + row * n + i, mask=i < n, other=-1.0)
        best = tl.min(tl.where(norms == tl.max(norms, 0), i, BLOCK_N - 1), 0)
        c = tl.arange(0, BLOCK_C)
        inside = c < width
        x = tl.load(x_ptr + (row * n + best) * width + c, mask=inside, other=0.0)
        x -= tl.load(mean_ptr + row * width + c, mask=inside, other=0.0)
        tl.store(out_ptr + row * width + c, x, mask=inside)

    @kernel
    def _project_kernel(
        x_ptr,
        mean_ptr,
        direction_ptr,
        out_ptr,
        n,
        width,
        ABSOLUTE: tl.constexpr,
        TOGETHER: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        row = tl.program_id(1).to(tl.int64)
        c = tl.arange(0, BLOCK)
        inside = c < width
        mean = tl.load(mean_ptr + row * width + c, mask=inside, other=0.0)
        direction = tl.load(direction_ptr + row * width + c, mask=inside, other=0.0)
        direction /= tl.maximum(tl.sqrt(tl.sum(direction * direction, 0)), 1e-20)
        token = tl.program_id(0) * TOGETHER + tl.arange(0, TOGETHER)
        mask = (token < n)[:, None] & inside[None]
        at = (row * n + token)[:, None] * width + c[None]
        x = tl.load(x_ptr + at, mask=mask, other=0.0)
        along = tl.sum((x - mean[None]) * direction[None], 1)
        if ABSOLUTE:
            along = tl.abs(along)
        tl.store(out_ptr + row * n + token, along, mask=token < n)
