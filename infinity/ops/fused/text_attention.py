"""Cross-attention to packed text whose row boundaries only the device knows.

One launch serves prompts of any length, so that a recorded graph serves every prompt.

Shape legend: T queries of all rows end to end, n text rows end to end, b rows, H heads, K head dim.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from infinity.ops.fused.residual_norm import FP8, FP8_MAX, Quantised
from infinity.ops.fused.support import kernel, power_of_two, triton, usable

_LEAST = 1e-12

_BLOCK_T = 64
"""Text of so many rows is attended to in one step."""


def reference(
    q: Float[Tensor, "total heads dim"],
    kv: Float[Tensor, "n 2 heads dim"],
    cu_seqlens_q: Int32[Tensor, " b1"],
    cu_seqlens_text: Int32[Tensor, " b1"],
    scale: float,
    limits: Float[Tensor, " b"] | None = None,
) -> Float[Tensor, "total heads dim"] | Quantised:
    """See :func:`text_attention`."""
    k, v = kv.float().unbind(1)
    text, tokens = (torch.arange(len(x), device=q.device) for x in (kv, q))
    row = torch.searchsorted(cu_seqlens_q[1:], tokens.int(), right=True)
    seen = (text >= cu_seqlens_text[row][:, None]) & (text < cu_seqlens_text[row + 1][:, None])
    scores = torch.einsum("thk,nhk->htn", q.float(), k) * scale
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    out = torch.einsum("htn,nhk->thk", weights, v)
    if limits is None:
        return out.to(q.dtype)
    factor = limits[row].clamp_min(_LEAST) / FP8_MAX
    values = (out.flatten(1) / factor[:, None]).clamp(-FP8_MAX, FP8_MAX)
    return Quantised(values.to(FP8), factor)


def largest_values(
    kv: Sequence[Float[Tensor, "n 2 heads dim"]], cu_seqlens_text: Int32[Tensor, " b1"]
) -> Float[Tensor, "layers b"]:
    """Of every row the largest magnitude among the values of its text, per layer, fp32."""
    per_entry = torch.stack([layer[:, 1].abs().amax((1, 2)) for layer in kv]).float()
    entry = torch.arange(per_entry.shape[1], device=per_entry.device)
    start, stop = cu_seqlens_text[:-1, None], cu_seqlens_text[1:, None]
    inside = (entry >= start) & (entry < stop)
    return per_entry[:, None].masked_fill(~inside, 0.0).amax(-1)


def text_attention(
    q: Float[Tensor, "total heads dim"],
    kv: Float[Tensor, "n 2 heads dim"],
    cu_seqlens_q: Int32[Tensor, " b1"],
    cu_seqlens_text: Int32[Tensor, " b1"],
    max_seqlen_q: int,
    scale: float,
    limits: Float[Tensor, " b"] | None = None,
    longest: int | None = None,
) -> Float[Tensor, "total heads dim"] | Quantised:
    """Every query's attention to the text of its row.

    Args:
        q: queries.
        kv: keys and values of the text; entries outside all rows are never read as such.
        cu_seqlens_q: row boundaries of the queries.
        cu_seqlens_text: row boundaries in ``kv``; need not start at 0. Every row has an entry.
        max_seqlen_q: most queries of a row, on the host.
        scale: factor on the scores before the softmax.
        limits: no value of the row's text is larger (:func:`largest_values`), and so no average of
            them. With limits the result is fp8, ``(T, H·K)``, and a row's tokens share a factor.
        longest: no row's text is longer; None: unknown.
    """
    if not usable(q, "text_attention"):
        return reference(q, kv, cu_seqlens_q, cu_seqlens_text, scale, limits)
    total, heads, dim = q.shape
    out = torch.empty_like(q, dtype=q.dtype if limits is None else FP8)
    factor = q if limits is None else q.new_empty(total, dtype=torch.float32)
    single = longest is not None and longest <= _BLOCK_T
    block_q = 16 if max_seqlen_q <= 16 else 64 if single or max_seqlen_q <= 512 else 128
    rows = len(cu_seqlens_q) - 1
    _text_attention_kernel[(-(-max_seqlen_q // block_q), heads, rows)](
        q,
        kv,
        cu_seqlens_q,
        cu_seqlens_text,
        q if limits is None else limits,
        out,
        factor,
        heads,
        dim,
        scale * 1.4426950408889634,
        QUANTISE=limits is not None,
        SINGLE=single,
        BLOCK_Q=block_q,
        BLOCK_T=_BLOCK_T,
        BLOCK_K=max(16, power_of_two(dim)),
        num_warps=8 if block_q == 128 else 4,
        num_stages=2,
    )
    return out if limits is None else Quantised(out.flatten(1), factor)


if triton is not None:
    import triton.language as tl

    @kernel
    def _attended(
        q,
        words,
        begin,
        largest,
        total,
        acc,
        SINGLE: tl.constexpr,
        BLOCK_T: tl.constexpr,
        BLOCK_K: tl.constexpr,
    ):
        kv_ptr, text_end, heads, dim, head, scale_log2 = words
        channel = tl.arange(0, BLOCK_K)
        entry = begin + tl.arange(0, BLOCK_T)
        valid = entry < text_end
        source = entry.to(tl.int64)[:, None] * 2 * heads * dim + head * dim + channel[None]
        mask = valid[:, None] & (channel < dim)[None]
        k = tl.load(kv_ptr + source, mask=mask, other=0.0)
        v = tl.load(kv_ptr + source + heads * dim, mask=mask, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
        scores = tl.where(valid[None], scores, -1e30)
        peak = tl.max(scores, 1)
        if not SINGLE:
            peak = tl.maximum(largest, peak)
        weights = tl.where(valid[None], tl.exp2(scores - peak[:, None]), 0.0)
        new = tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        if SINGLE:
            return peak, tl.sum(weights, 1), new
        fade = tl.exp2(largest - peak)
        return peak, total * fade + tl.sum(weights, 1), acc * fade[:, None] + new

    @kernel
    def _text_attention_kernel(
        q_ptr,
        kv_ptr,
        cu_q_ptr,
        cu_text_ptr,
        limit_ptr,
        out_ptr,
        factor_ptr,
        heads,
        dim,
        scale_log2,
        QUANTISE: tl.constexpr,
        SINGLE: tl.constexpr,
        BLOCK_Q: tl.constexpr,
        BLOCK_T: tl.constexpr,
        BLOCK_K: tl.constexpr,
    ):
        head, row = tl.program_id(1), tl.program_id(2)
        q_start, q_end = tl.load(cu_q_ptr + row), tl.load(cu_q_ptr + row + 1)
        first = q_start + tl.program_id(0) * BLOCK_Q
        if first < q_end:
            text_start, text_end = tl.load(cu_text_ptr + row), tl.load(cu_text_ptr + row + 1)
            token = (first + tl.arange(0, BLOCK_Q)).to(tl.int64)
            channel = tl.arange(0, BLOCK_K)
            wide = channel < dim
            here = token < q_end
            at = token[:, None] * heads * dim + head * dim + channel[None]
            q = tl.load(q_ptr + at, mask=here[:, None] & wide[None], other=0.0)
            largest = tl.full((BLOCK_Q,), -1e30, tl.float32)
            total = tl.zeros((BLOCK_Q,), tl.float32)
            acc = tl.zeros((BLOCK_Q, BLOCK_K), tl.float32)
            words = (kv_ptr, text_end, heads, dim, head, scale_log2)
            if SINGLE:
                # Nothing is carried over, which leaves registers for more programs at a time.
                largest, total, acc = _attended(
                    q, words, text_start, largest, total, acc, SINGLE, BLOCK_T, BLOCK_K
                )
            else:
                for begin in range(text_start, text_end, BLOCK_T):
                    largest, total, acc = _attended(
                        q, words, begin, largest, total, acc, SINGLE, BLOCK_T, BLOCK_K
                    )
            if QUANTISE:
                factor = tl.maximum(tl.load(limit_ptr + row), 1e-12) / 448.0
                if head == 0:
                    tl.store(factor_ptr + token, tl.zeros_like(total) + factor, mask=here)
                acc = acc / (total * factor)[:, None]
                acc = tl.minimum(tl.maximum(acc, -448.0), 448.0)
            else:
                acc = acc / total[:, None]
            tl.store(
                out_ptr + at, acc.to(out_ptr.dtype.element_ty), mask=here[:, None] & wide[None]
            )
