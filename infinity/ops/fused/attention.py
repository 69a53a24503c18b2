"""Self-attention of few queries to a padded cache in one plain launch.

cuDNN's kernel is the faster one where there is much to do, but each of its calls clears a counter
first: 7 µs of an H200 that a scale of a few hundred tokens notices.

Shape legend: b rows, M queries of a row, T = b·M, L entries of a row's cache, H heads, K head dim.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from infinity.ops.fused.support import kernel, power_of_two, triton, usable

_QUERIES, _KEYS, _STAGES = 64, 64, 3
"""Queries of a program, keys of a step, steps under way: two programs share a multiprocessor."""


def reference(
    q: Float[Tensor, "total heads dim"],
    k: Float[Tensor, "b span heads dim"],
    v: Float[Tensor, "b span heads dim"],
    seen: int,
    scale: float,
) -> Float[Tensor, "total heads dim"]:
    """See :func:`attention`."""
    rows = q.unflatten(0, (len(k), -1)).transpose(1, 2)
    k, v = (t[:, :seen].transpose(1, 2) for t in (k, v))
    out = F.scaled_dot_product_attention(rows, k, v, scale=scale)
    return out.transpose(1, 2).reshape(q.shape)


def readable(k: Float[Tensor, "b span heads dim"], v: Float[Tensor, "b span heads dim"]) -> bool:
    """Whether the kernel can read keys and values where they lie."""
    return k.stride() == v.stride() and k.stride(3) == 1 and k.stride(2) == k.shape[3]


def attention(
    q: Float[Tensor, "total heads dim"],
    k: Float[Tensor, "b span heads dim"],
    v: Float[Tensor, "b span heads dim"],
    seen: int,
    scale: float,
) -> Float[Tensor, "total heads dim"]:
    """Attention of every query to the first entries of its row's cache.

    Args:
        q: rows of equal length end to end, contiguous.
        k, v: :func:`readable`, with equal strides and contiguous heads.
        seen: entries of every row that are attended to, at least 1.
        scale: factor on the scores before the softmax.

    Raises:
        ValueError: keys and values that lie otherwise.
    """
    if not readable(k, v):
        raise ValueError("keys and values need equal strides and contiguous heads")
    if not usable(q, "attention"):
        return reference(q, k, v, seen, scale)
    total, heads, dim = q.shape
    per_row = total // len(k)
    out, block = torch.empty_like(q), max(16, power_of_two(dim))
    _attention_kernel[(-(-per_row // _QUERIES), heads, len(k))](
        q,
        k,
        v,
        out,
        heads,
        dim,
        per_row,
        seen,
        k.stride(0),
        k.stride(1),
        scale * 1.4426950408889634,
        EVEN=block == dim,
        BLOCK_M=_QUERIES,
        BLOCK_L=_KEYS,
        BLOCK_K=block,
        num_warps=_QUERIES // 16,
        num_stages=_STAGES,
    )
    return out


if triton is not None:
    import triton.language as tl

    @kernel
    def _loaded(base, entry, stride, c, dim, valid, EVEN: tl.constexpr, WHOLE: tl.constexpr):
        at = base + entry.to(tl.int64)[:, None] * stride + c[None]
        if EVEN and WHOLE:
            return tl.load(at)
        if WHOLE:
            return tl.load(at, mask=(c < dim)[None], other=0.0)
        return tl.load(at, mask=valid[:, None] & (c < dim)[None], other=0.0)

    @kernel
    def _attended(
        q, k_base, v_base, entry, stride, c, dim, seen, scale_log2, largest, total, acc,
        EVEN: tl.constexpr, WHOLE: tl.constexpr,
    ):  # fmt: skip
        valid = entry < seen
        k = _loaded(k_base, entry, stride, c, dim, valid, EVEN, WHOLE)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
        if not WHOLE:
            scores = tl.where(valid[None], scores, -1e30)
        peak = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp2(scores - peak[:, None])
        fade = tl.exp2(largest - peak)
        v = _loaded(v_base, entry, stride, c, dim, valid, EVEN, WHOLE)
        acc = acc * fade[:, None]
        acc = tl.dot(weights.to(v.dtype), v, acc, input_precision="ieee")
        return peak, total * fade + tl.sum(weights, 1), acc

    @kernel
    def _attention_kernel(
        q_ptr,
        k_ptr,
        v_ptr,
        out_ptr,
        heads,
        dim,
        per_row,
        seen,
        row_stride,
        entry_stride,
        scale_log2,
        EVEN: tl.constexpr,
        BLOCK_M: tl.constexpr,
        BLOCK_L: tl.constexpr,
        BLOCK_K: tl.constexpr,
    ):
        head, row = tl.program_id(1), tl.program_id(2).to(tl.int64)
        m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
        c = tl.arange(0, BLOCK_K)
        inside = (m < per_row)[:, None] & (c < dim)[None]
        at = (row * per_row + m)[:, None] * heads * dim + head * dim + c[None]
        q = tl.load(q_ptr + at, mask=inside, other=0.0)
        k_base = k_ptr + row * row_stride + head * dim
        v_base = v_ptr + row * row_stride + head * dim
        largest = tl.full((BLOCK_M,), -1e30, tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        acc = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
        lane = tl.arange(0, BLOCK_L)
        whole = seen // BLOCK_L * BLOCK_L
        for begin in range(0, whole, BLOCK_L):
            largest, total, acc = _attended(
                q, k_base, v_base, begin + lane, entry_stride, c, dim, seen, scale_log2,
                largest, total, acc, EVEN, True,
            )  # fmt: skip
        if whole < seen:
            largest, total, acc = _attended(
                q, k_base, v_base, whole + lane, entry_stride, c, dim, seen, scale_log2,
                largest, total, acc, EVEN, False,
            )  # fmt: skip
        acc = acc / total[:, None]
        tl.store(out_ptr + at, acc.to(out_ptr.dtype.element_ty), mask=inside)
