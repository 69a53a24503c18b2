"""Bits drawn from raw logits in one launch: temperature, guidance, truncation and the draw itself.

Shape legend: B images, T their tokens end to end, D bits of a token.
"""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from infinity.ops.fused.support import kernel, triton

_BLOCK = 512


def draw(
    logits: Float[Tensor, "rows d 2"],
    draws: Float[Tensor, "images bits 2"],
    *,
    temperature: float,
    guidance: float | None,
    top_k: int,
    top_p: float,
) -> tuple[Int64[Tensor, "t d"], Float[Tensor, "t d 2"]]:
    """As :func:`infinity.sampling.bits.draw_bits`, step by step.

    Args:
        logits: contiguous fp32 on a device where the kernels run.
        draws: exponential, of all T·D bits.
        temperature, guidance, top_k, top_p: see there.
    """
    bits = draws.shape[0] * draws.shape[1]
    width = logits.shape[1]
    chosen = torch.empty(bits // width, width, dtype=torch.int64, device=logits.device)
    guided = torch.empty(bits // width, width, 2, device=logits.device)
    scale = 1.0 if guidance is None else guidance
    _draw_kernel[(-(-bits // _BLOCK),)](
        logits,
        draws.contiguous(),
        chosen,
        guided,
        bits,
        1 / temperature,
        scale,
        1 - scale,
        _rounded_down(1 - top_p),
        GUIDED=guidance is not None,
        TOP_1=top_k == 1,
        TOP_P=top_p > 0,
        BLOCK=_BLOCK,
        num_warps=4,
        # A fused multiply-add would round otherwise than the same steps taken one by one.
        enable_fp_fusion=False,
    )
    return chosen, guided


def _rounded_down(x: float) -> float:
    """The largest fp32 number that is at most ``x``: fp32 numbers compare to both alike."""
    nearest = torch.tensor(x, dtype=torch.float32)
    if nearest.double().item() > x:
        nearest = torch.nextafter(nearest, torch.tensor(-math.inf))
    return nearest.item()


if triton is not None:
    import triton.language as tl

    @kernel
    def _draw_kernel(
        logit_ptr,
        draw_ptr,
        bit_ptr,
        guided_ptr,
        bits,
        inverse_temperature,
        guidance,
        rest,
        least,
        GUIDED: tl.constexpr,
        TOP_1: tl.constexpr,
        TOP_P: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = i < bits
        zero = tl.load(logit_ptr + 2 * i, mask=inside, other=0.0) * inverse_temperature
        one = tl.load(logit_ptr + 2 * i + 1, mask=inside, other=0.0) * inverse_temperature
        if GUIDED:
            other = logit_ptr + 2 * (bits + i)
            away = tl.load(other, mask=inside, other=0.0) * inverse_temperature
            zero = guidance * zero + rest * away
            away = tl.load(other + 1, mask=inside, other=0.0) * inverse_temperature
            one = guidance * one + rest * away
        tl.store(guided_ptr + 2 * i, zero, mask=inside)
        tl.store(guided_ptr + 2 * i + 1, one, mask=inside)
        larger = tl.maximum(zero, one)
        p_zero, p_one = tl.exp(zero - larger), tl.exp(one - larger)
        total = p_zero + p_one
        p_zero, p_one = p_zero / total, p_one / total
        if TOP_1:
            only_zero, only_one = one < larger, zero < larger
        else:
            only_zero = tl.zeros((BLOCK,), tl.int1)
            only_one = only_zero
        if TOP_P:
            smaller_one = one < zero
            only_zero = only_zero | (smaller_one & (p_one <= least))
            only_one = only_one | (~smaller_one & (p_zero <= least))
        d_zero = tl.load(draw_ptr + 2 * i, mask=inside, other=1.0)
        d_one = tl.load(draw_ptr + 2 * i + 1, mask=inside, other=1.0)
        drawn = p_one / d_one > p_zero / d_zero
        bit = (drawn & ~only_zero) | only_one
        tl.store(bit_ptr + i, bit.to(tl.int64), mask=inside)
