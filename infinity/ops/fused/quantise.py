"""fp8 with one factor per token, optionally of ``gelu(x)``, in one pass."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from infinity.ops.fused.residual_norm import FP8, Quantised, quantise_rows
from infinity.ops.fused.support import kernel, power_of_two, triton, usable


def reference(x: Float[Tensor, "total width"], *, gelu: bool) -> Quantised:
    """See :func:`quantise`."""
    return quantise_rows(F.gelu(x.float(), approximate="tanh") if gelu else x)


def quantise(x: Float[Tensor, "total width"], *, gelu: bool = False) -> Quantised:
    """``x``, or its tanh-approximated GELU, in fp8 with one factor per token."""
    if not usable(x, "quantise"):
        return reference(x, gelu=gelu)
    total, width = x.shape
    values, scale = x.new_empty(x.shape, dtype=FP8), x.new_empty(total, dtype=torch.float32)
    block = power_of_two(width)
    _quantise_kernel[(total,)](
        x,
        values,
        scale,
        width,
        GELU=gelu,
        BLOCK=block,
        num_warps=_warps(block),
    )
    return Quantised(values, scale)


def _warps(block: int) -> int:
    return min(16, max(4, block // 512))


if triton is not None:
    import triton.language as tl

    @kernel
    def _quantise_kernel(
        x_ptr,
        values_ptr,
        scale_ptr,
        width,
        GELU: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        token = tl.program_id(0).to(tl.int64)
        c = tl.arange(0, BLOCK)
        inside = c < width
        x = tl.load(x_ptr + token * width + c, mask=inside, other=0.0).to(tl.float32)
        if GELU:
            inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
            # tanh(u) = 1 − 2 / (exp(2u) + 1), exact at both ends.
            x = 0.5 * x * (2.0 - 2.0 / (tl.exp(2.0 * inner) + 1.0))
        factor = tl.maximum(tl.max(tl.abs(x), 0), 1e-12) / 448.0
        tl.store(scale_ptr + token, factor)
        x = tl.minimum(tl.maximum(x / factor, -448.0), 448.0)
        tl.store(values_ptr + token * width + c, x.to(values_ptr.dtype.element_ty), mask=inside)
