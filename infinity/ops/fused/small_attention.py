"""Self-attention of a few tokens in one launch: normalised, rotated, cached and attended to.

Shape legend: b rows, M tokens of a row, T = b·M tokens end to end, H heads, K head dim, L entries
that the cache holds already.
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from infinity.ops.fused import rotate
from infinity.ops.fused.residual_norm import RowsOf
from infinity.ops.fused.rotate import Phases, Slots
from infinity.ops.fused.support import kernel, power_of_two, triton, usable

MOST = 16
"""Tokens of a row that the kernel serves; with more, separate kernels are as fast (H200)."""


def reference(
    qkv: Float[Tensor, "total 3 heads dim"],
    scale: Float[Tensor, " heads"],
    phases: Phases,
    per_row: int,
    slots: Slots,
) -> Float[Tensor, "total heads dim"]:
    """See :func:`small_attention`."""
    q = rotate.rotate_and_cache(qkv, scale, phases, RowsOf(per_row), slots)
    seen = slots.start + per_row
    k, v = slots.k[:, :seen].transpose(1, 2), slots.v[:, :seen].transpose(1, 2)
    rows = q.unflatten(0, (-1, per_row)).transpose(1, 2)
    out = F.scaled_dot_product_attention(rows, k, v, scale=1.0)
    return out.transpose(1, 2).reshape(q.shape)


def small_attention(
    qkv: Float[Tensor, "total 3 heads dim"],
    scale: Float[Tensor, " heads"],
    phases: Phases,
    per_row: int,
    slots: Slots,
) -> Float[Tensor, "total heads dim"]:
    """Attention of every token to what its row has cached and to its row's new tokens, whose keys
    and values are written to their slots.

    Args:
        qkv: of the tokens, contiguous; rows of equal length.
        scale: factor on the unit queries of every head, fp32.
        phases: rotary phases of the tokens.
        per_row: tokens of a row, at most :data:`MOST`.
        slots: in the cache, rows equally filled.
    """
    if not usable(qkv, "small_attention"):
        return reference(qkv, scale, phases, per_row, slots)
    total, _, heads, dim = qkv.shape
    out = qkv.new_empty(total, heads, dim)
    _small_attention_kernel[(heads, total // per_row)](
        qkv,
        scale,
        phases.cos,
        phases.sin,
        phases.positions,
        slots.k,
        slots.v,
        out,
        heads,
        dim,
        phases.offset,
        per_row,
        slots.start,
        slots.k.stride(0),
        slots.k.stride(1),
        BLOCK_M=MOST,
        BLOCK_L=64,
        BLOCK_K=max(16, power_of_two(dim)),
        num_warps=4,
        num_stages=2,
    )
    return out


if triton is not None:
    import triton.language as tl

    @kernel
    def _turned(
        source, factor, phases, token, here, dim, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr
    ):
        cos_ptr, sin_ptr, position_ptr, offset = phases
        pair = tl.arange(0, BLOCK_K // 2)
        place = tl.load(position_ptr + token, mask=here, other=0).to(tl.int64) + offset
        at = place[:, None] * (dim // 2) + pair[None]
        turns = here[:, None] & (pair < dim // 2)[None]
        cos = tl.load(cos_ptr + at, mask=turns, other=0.0)
        sin = tl.load(sin_ptr + at, mask=turns, other=0.0)
        inside = here[:, None] & (tl.arange(0, BLOCK_K) < dim)[None]
        x = tl.load(source, mask=inside, other=0.0)
        even, odd = tl.split(tl.reshape(x.to(tl.float32), (BLOCK_M, BLOCK_K // 2, 2)))
        length = tl.sqrt(tl.sum(even * even, 1) + tl.sum(odd * odd, 1))
        unit = (factor / tl.maximum(length, 1e-12))[:, None]
        even, odd = even * unit, odd * unit
        return tl.interleave(cos * even - sin * odd, sin * even + cos * odd).to(x.dtype)

    @kernel
    def _attended(q, k, v, valid, largest, total, acc):
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * 1.4426950408889634
        scores = tl.where(valid[None], scores, -1e30)
        peak = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.where(valid[None], tl.exp2(scores - peak[:, None]), 0.0)
        fade = tl.exp2(largest - peak)
        acc = acc * fade[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        return peak, total * fade + tl.sum(weights, 1), acc

    @kernel
    def _small_attention_kernel(
        qkv_ptr,
        scale_ptr,
        cos_ptr,
        sin_ptr,
        position_ptr,
        k_ptr,
        v_ptr,
        out_ptr,
        heads,
        dim,
        offset,
        per_row,
        start,
        row_stride,
        entry_stride,
        BLOCK_M: tl.constexpr,
        BLOCK_L: tl.constexpr,
        BLOCK_K: tl.constexpr,
    ):
        head, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
        m = tl.arange(0, BLOCK_M)
        j = tl.arange(0, BLOCK_K)
        here = m < per_row
        inside = here[:, None] & (j < dim)[None]
        packed = heads * dim
        token = row * per_row + m
        at = head * dim + j[None]
        source = qkv_ptr + token[:, None] * 3 * packed + at
        phases = (cos_ptr, sin_ptr, position_ptr, offset)
        factor = tl.load(scale_ptr + head)
        q = _turned(source, factor, phases, token, here, dim, BLOCK_M, BLOCK_K)
        key = _turned(source + packed, 1.0, phases, token, here, dim, BLOCK_M, BLOCK_K)
        value = tl.load(source + 2 * packed, mask=inside, other=0.0)
        cached = row * row_stride + at
        slot = cached + (start + m).to(tl.int64)[:, None] * entry_stride
        tl.store(k_ptr + slot, key, mask=inside)
        tl.store(v_ptr + slot, value, mask=inside)
        largest = tl.full((BLOCK_M,), -1e30, tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        acc = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
        largest, total, acc = _attended(q, key, value, here, largest, total, acc)
        for begin in range(0, start, BLOCK_L):
            entry = begin + tl.arange(0, BLOCK_L)
            valid = entry < start
            where = cached + entry.to(tl.int64)[:, None] * entry_stride
            mask = valid[:, None] & (j < dim)[None]
            k = tl.load(k_ptr + where, mask=mask, other=0.0)
            v = tl.load(v_ptr + where, mask=mask, other=0.0)
            largest, total, acc = _attended(q, k, v, valid, largest, total, acc)
        acc = acc / total[:, None]
        to = out_ptr + token[:, None] * packed + at
        tl.store(to, acc.to(out_ptr.dtype.element_ty), mask=inside)
