"""fp8 with one factor per token, optionally of ``gelu(x)``, in one pass."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from infinity.ops.fused.residual_norm import FP8, Quantised, quantise_rows
from infinity.ops.fused.support import INTERPRETED, kernel, power_of_two, triton, usable


@dataclass(frozen=True)
class Launch:
    """How the kernel divides its work; the result is the same.

    Attributes:
        tokens: of a program.
        warps: of a program.
    """

    tokens: int
    warps: int


def default_launch(width: int) -> Launch:
    """Up to sixteen numbers per thread, one token per program."""
    return Launch(1, min(16, max(4, power_of_two(width) // 512)))


def reference(x: Float[Tensor, "total width"], *, gelu: bool) -> Quantised:
    """See :func:`quantise`."""
    return quantise_rows(F.gelu(x.float(), approximate="tanh") if gelu else x)


def quantise(
    x: Float[Tensor, "total width"], *, gelu: bool = False, launch: Launch | None = None
) -> Quantised:
    """``x``, or its tanh-approximated GELU, in fp8 with one factor per token.

    Args:
        x: contiguous.
        gelu: whether of the GELU.
        launch: of the kernel; None takes :func:`default_launch`.
    """
    if not usable(x, "quantise"):
        return reference(x, gelu=gelu)
    total, width = x.shape
    values, scale = x.new_empty(x.shape, dtype=FP8), x.new_empty(total, dtype=torch.float32)
    launch = launch or default_launch(width)
    _quantise_kernel[(-(-total // launch.tokens),)](
        x,
        values,
        scale,
        total,
        width,
        GELU=gelu,
        HARDWARE_TANH=not INTERPRETED,
        TOKENS=launch.tokens,
        BLOCK=power_of_two(width),
        num_warps=launch.warps,
    )
    return Quantised(values, scale)


if triton is not None:
    import triton.language as tl

    @kernel
    def _tanh(x, HARDWARE: tl.constexpr):
        # A multiprocessor takes 16 exponentials or reciprocals a clock: with three of them per
        # number the kernel waited for those instead of for memory. The instruction is exact to
        # 2⁻¹¹, fp8 to 2⁻⁴.
        if HARDWARE:
            return tl.inline_asm_elementwise(
                "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
            )
        return 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)

    @kernel
    def _quantise_kernel(
        x_ptr,
        values_ptr,
        scale_ptr,
        total,
        width,
        GELU: tl.constexpr,
        HARDWARE_TANH: tl.constexpr,
        TOKENS: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
        c = tl.arange(0, BLOCK)
        inside = (token < total)[:, None] & (c < width)[None]
        at = token[:, None] * width + c[None]
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        if GELU:
            inner = x * (0.7978845608028654 + 0.035677408136300125 * x * x)
            half = 0.5 * x
            x = half + half * _tanh(inner, HARDWARE_TANH)
        largest = tl.maximum(tl.max(tl.abs(x), 1), 1e-12)
        tl.store(scale_ptr + token, largest / 448.0, mask=token < total)
        # One division per token; the product may exceed the largest number by a rounding.
        x = x * (448.0 / largest)[:, None]
        x = tl.minimum(tl.maximum(x, -448.0), 448.0)
        tl.store(values_ptr + at, x.to(values_ptr.dtype.element_ty), mask=inside)
