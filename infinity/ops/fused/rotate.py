"""From the qkv product to what attention reads: unit queries and keys, their scale, their rotary
phases, and the place of keys and values in the cache.

Shape legend: T tokens of all rows end to end, b rows, H heads, K head dim.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from infinity.ops.fused.residual_norm import RowsOf
from infinity.ops.fused.support import kernel, power_of_two, triton, usable


@dataclass(frozen=True)
class Phases:
    """Rotary phases of the tokens: row ``offset + positions[t]`` of the tables, ``(L, K/2)``
    each.
    """

    cos: Float[Tensor, "l pairs"]
    sin: Float[Tensor, "l pairs"]
    positions: Int[Tensor, " total"]
    offset: int


@dataclass(frozen=True)
class Slots:
    """Where keys and values go: entry ``start + place in the row`` of the token's cache row, or
    ``ids[t]`` where rows differ. ``k`` and ``v`` are ``(b, span, H, K)`` with equal strides.
    """

    k: Tensor
    v: Tensor
    start: int
    ids: Int[Tensor, " total"] | None = None

    def of(self, rows: RowsOf, total: int) -> tuple[Tensor, Tensor]:
        """Cache row and entry of every token."""
        token = torch.arange(total, device=self.k.device)
        row = token // rows.per_row if rows.ids is None else rows.ids.long()
        entry = self.start + token % rows.per_row if self.ids is None else self.ids.long()
        return row, entry


def reference(
    qkv: Float[Tensor, "total 3 heads dim"],
    scale: Float[Tensor, " heads"],
    phases: Phases,
    rows: RowsOf,
    slots: Slots,
) -> Float[Tensor, "total heads dim"]:
    """See :func:`rotate_and_cache`."""
    q, k, v = qkv.unbind(1)
    place = phases.offset + phases.positions
    cos, sin = phases.cos[place][:, None], phases.sin[place][:, None]

    def turned(x: Tensor) -> Tensor:
        even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack([cos * even - sin * odd, sin * even + cos * odd], dim=-1).flatten(-2)

    row, entry = slots.of(rows, len(qkv))
    slots.k[row, entry] = turned(F.normalize(k.float(), dim=-1, eps=1e-12)).to(slots.k.dtype)
    slots.v[row, entry] = v.to(slots.v.dtype)
    q = F.normalize(q.float(), dim=-1, eps=1e-12) * scale[:, None]
    return turned(q).to(qkv.dtype)


def rotate_and_cache(
    qkv: Float[Tensor, "total 3 heads dim"],
    scale: Float[Tensor, " heads"],
    phases: Phases,
    rows: RowsOf,
    slots: Slots,
) -> Float[Tensor, "total heads dim"]:
    """Queries ready for a dot product of scale 1; keys and values are written to their slots.

    Args:
        qkv: of the tokens, contiguous.
        scale: factor on the unit queries of every head, fp32.
        phases: rotary phases of the tokens.
        rows: of the tokens.
        slots: in the cache.
    """
    if not usable(qkv, "rotate"):
        return reference(qkv, scale, phases, rows, slots)
    total, _, heads, dim = qkv.shape
    q = qkv.new_empty(total, heads, dim)
    k = slots.k
    if k.stride() != slots.v.stride() or k.stride(3) != 1 or k.stride(2) != dim:
        raise ValueError("keys and values need equal strides and contiguous heads")
    _rotate_kernel[(total,)](
        qkv,
        scale,
        phases.cos,
        phases.sin,
        phases.positions,
        qkv if rows.ids is None else rows.ids,
        qkv if slots.ids is None else slots.ids,
        q,
        k,
        slots.v,
        heads,
        dim,
        phases.offset,
        rows.per_row,
        slots.start,
        k.stride(0),
        k.stride(1),
        HAS_IDS=rows.ids is not None,
        HAS_SLOTS=slots.ids is not None,
        BLOCK_H=power_of_two(heads),
        BLOCK_K=power_of_two(dim),
        num_warps=4,
    )
    return q


if triton is not None:
    import triton.language as tl

    @kernel
    def _turned(x, factor, cos, sin, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr):
        even, odd = tl.split(tl.reshape(x, (BLOCK_H, BLOCK_K // 2, 2)))
        length = tl.sqrt(tl.sum(even * even, 1) + tl.sum(odd * odd, 1))
        unit = (factor / tl.maximum(length, 1e-12))[:, None]
        even, odd = even * unit, odd * unit
        return tl.interleave(cos * even - sin * odd, sin * even + cos * odd)

    @kernel
    def _rotate_kernel(
        qkv_ptr,
        scale_ptr,
        cos_ptr,
        sin_ptr,
        position_ptr,
        ids_ptr,
        slot_ptr,
        q_ptr,
        k_ptr,
        v_ptr,
        heads,
        dim,
        offset,
        per_row,
        start,
        row_stride,
        entry_stride,
        HAS_IDS: tl.constexpr,
        HAS_SLOTS: tl.constexpr,
        BLOCK_H: tl.constexpr,
        BLOCK_K: tl.constexpr,
    ):
        token = tl.program_id(0).to(tl.int64)
        row = tl.load(ids_ptr + token).to(tl.int64) if HAS_IDS else token // per_row
        entry = tl.load(slot_ptr + token).to(tl.int64) if HAS_SLOTS else start + token % per_row
        h = tl.arange(0, BLOCK_H)
        j = tl.arange(0, BLOCK_K)
        pair = tl.arange(0, BLOCK_K // 2)
        inside = (h < heads)[:, None] & (j < dim)[None]
        place = tl.load(position_ptr + token).to(tl.int64) + offset
        pairs = pair < dim // 2
        cos = tl.load(cos_ptr + place * (dim // 2) + pair, mask=pairs, other=0.0)[None]
        sin = tl.load(sin_ptr + place * (dim // 2) + pair, mask=pairs, other=0.0)[None]
        scale = tl.load(scale_ptr + h, mask=h < heads, other=0.0)
        at = h[:, None] * dim + j[None]
        packed = heads * dim
        source = qkv_ptr + token * 3 * packed + at
        q = tl.load(source, mask=inside, other=0.0).to(tl.float32)
        k = tl.load(source + packed, mask=inside, other=0.0).to(tl.float32)
        v = tl.load(source + 2 * packed, mask=inside, other=0.0)
        q = _turned(q, scale, cos, sin, BLOCK_H, BLOCK_K)
        k = _turned(k, 1.0, cos, sin, BLOCK_H, BLOCK_K)
        cached = row * row_stride + entry * entry_stride + at
        tl.store(q_ptr + token * packed + at, q.to(q_ptr.dtype.element_ty), mask=inside)
        tl.store(k_ptr + cached, k.to(k_ptr.dtype.element_ty), mask=inside)
        tl.store(v_ptr + cached, v, mask=inside)
