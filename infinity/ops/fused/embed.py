"""A level's embedding added to embedded tokens, for all guidance rows at once.

Shape legend: B images, r·B rows, N positions, C width.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from infinity.ops.fused.support import kernel, power_of_two, triton, usable, warps_of


def reference(
    x: Float[Tensor, "b n width"], level: Float[Tensor, " width"], copies: int
) -> Float[Tensor, "rb n width"]:
    """See :func:`with_level`."""
    return (x + level.to(x.dtype)).float().repeat(copies, 1, 1)


def with_level(
    x: Float[Tensor, "b n width"], level: Float[Tensor, " width"], copies: int
) -> Float[Tensor, "rb n width"]:
    """``x + level`` in the dtype of ``x``, as fp32, ``copies`` times one after the other."""
    if not usable(x, "embed"):
        return reference(x, level, copies)
    x = x.contiguous()
    images, n, width = x.shape
    out, block = torch.empty(copies * images, n, width, device=x.device), power_of_two(width)
    _embed_kernel[(images * n,)](
        x, level, out, x.numel(), width, COPIES=copies, BLOCK=block, num_warps=warps_of(block)
    )
    return out


if triton is not None:
    import triton.language as tl

    @kernel
    def _embed_kernel(
        x_ptr, level_ptr, out_ptr, numel, width, COPIES: tl.constexpr, BLOCK: tl.constexpr
    ):
        c = tl.arange(0, BLOCK)
        inside = c < width
        at = tl.program_id(0).to(tl.int64) * width + c
        x = tl.load(x_ptr + at, mask=inside, other=0.0)
        level = tl.load(level_ptr + c, mask=inside, other=0.0).to(x.dtype)
        # The sum is rounded to the dtype of x before it becomes fp32.
        total = (x.to(tl.float32) + level.to(tl.float32)).to(x.dtype).to(tl.float32)
        for copy in tl.static_range(COPIES):
            tl.store(out_ptr + copy * numel + at, total, mask=inside)
