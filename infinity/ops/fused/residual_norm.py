"""Residual addition, gate, layer norm and modulation in one pass over the stream.

Shape legend: T tokens of all rows end to end, b rows, C width.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from infinity.ops.fused.support import kernel, power_of_two, triton, usable, warps_of

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0

TOKENS = 2
"""Tokens of a program, which share a row's modulation, where there are plenty of them."""

_MANY = 2048


@dataclass(frozen=True)
class RowsOf:
    """Which row a token belongs to: ``t // per_row``, or ``ids[t]`` where rows differ in length."""

    per_row: int
    ids: Int[Tensor, " total"] | None = None

    def spread(self, values: Float[Tensor, "rows width"], total: int) -> Tensor:
        """One vector per token from one per row."""
        if self.ids is not None:
            return values[self.ids]
        return values.repeat_interleave(self.per_row, 0, output_size=total)


@dataclass(frozen=True)
class Affine:
    """What follows the normalisation: ``h·(1 + scale) + shift`` per row, ``(b, C)`` each, or
    ``h·scale + shift`` with one ``(C,)`` for all.
    """

    scale: Tensor
    shift: Tensor


@dataclass(frozen=True)
class Branch:
    """A branch's output ``(T, C)`` on its way into the stream, and its gate per row, if any."""

    out: Tensor
    gate: Tensor | None = None

    def gated(self, rows: RowsOf) -> Float[Tensor, "total width"]:
        """What the branch adds to the stream, fp32; ``rows`` are its tokens'."""
        if self.gate is None:
            return self.out.float()
        if rows.ids is not None:
            return self.out * self.gate[rows.ids]
        return (self.out.unflatten(0, (-1, rows.per_row)) * self.gate[:, None]).flatten(0, 1)


@dataclass(frozen=True)
class Chosen:
    """Tokens at ``positions`` of rows that have ``n`` tokens each."""

    positions: Int[Tensor, " total"]
    n: int

    def of(self, x: Float[Tensor, "all width"], rows: RowsOf) -> Float[Tensor, "total width"]:
        """Those of ``x``; ``rows`` are theirs."""
        token = torch.arange(len(self.positions), device=x.device)
        row = token // rows.per_row if rows.ids is None else rows.ids.long()
        return x[row * self.n + self.positions]


@dataclass(frozen=True)
class Quantised:
    """fp8 values and their factor per row: ``values · scale[:, None]`` is what they stand for."""

    values: Tensor
    scale: Float[Tensor, " total"]


def quantise_rows(x: Float[Tensor, "total width"]) -> Quantised:
    """``x`` in fp8 with one factor per token, in plain torch."""
    scale = x.float().abs().amax(-1).clamp_min(1e-12) / FP8_MAX
    return Quantised((x.float() / scale[:, None]).clamp(-FP8_MAX, FP8_MAX).to(FP8), scale)


def reference(
    x: Float[Tensor, "total width"],
    rows: RowsOf,
    affine: Affine | None,
    branch: Branch | None,
    *,
    eps: float,
    dtype: torch.dtype,
    quantise: bool,
    chosen: Chosen | None = None,
    heard: Tensor | None = None,
) -> tuple[Tensor, Tensor | Quantised | None]:
    """See :func:`residual_norm`."""
    if chosen is not None:
        x = chosen.of(x, rows)
    if branch is not None:
        change = branch.out.float()
        if branch.gate is not None:
            change = change * rows.spread(branch.gate, len(x))
        if heard is not None:
            heard.copy_(change)
        x = x + change
    if affine is None:
        return x, None
    h = F.layer_norm(x.float(), x.shape[-1:], eps=eps)
    if affine.scale.ndim == 1:
        h = h * affine.scale + affine.shift
    else:
        h = h * (1 + rows.spread(affine.scale, len(x))) + rows.spread(affine.shift, len(x))
    return x, quantise_rows(h) if quantise else h.to(dtype)


def residual_norm(
    x: Float[Tensor, "total width"],
    rows: RowsOf,
    affine: Affine | None,
    branch: Branch | None = None,
    *,
    eps: float = 1e-6,
    dtype: torch.dtype = torch.bfloat16,
    quantise: bool = False,
    out: Float[Tensor, "total width"] | None = None,
    chosen: Chosen | None = None,
    heard: Float[Tensor, "total width"] | None = None,
) -> tuple[Tensor, Tensor | Quantised | None]:
    """The stream after ``branch``, and its normalised and modulated form.

    Args:
        x: the stream, fp32.
        rows: of the tokens.
        affine: after the norm; None leaves the norm out.
        branch: added to the stream first.
        eps: of the norm.
        dtype: of the second result.
        quantise: give it as fp8 with a factor per token instead.
        out: where the new stream goes, which may be ``x`` itself; None makes a new tensor. Without
            a branch the stream is ``x`` and nothing is written.
        chosen: which tokens of ``x`` are meant, for calls without a branch, whose first result
            then says nothing; None: all of them, ``T`` in number.
        heard: receives what ``branch`` adds, gate included, fp32.

    Raises:
        ValueError: ``chosen`` and a branch, whose tokens would not be those of ``x``.
    """
    if chosen is not None and branch is not None:
        raise ValueError("chosen tokens cannot have a branch added")
    if not usable(x, "residual_norm"):
        return reference(
            x,
            rows,
            affine,
            branch,
            eps=eps,
            dtype=dtype,
            quantise=quantise,
            chosen=chosen,
            heard=heard,
        )
    width = x.shape[1]
    total = len(x) if chosen is None else len(chosen.positions)
    stream = x
    if branch is not None:
        stream = torch.empty_like(x) if out is None else out
    dummy = x
    normed = x.new_empty((total, width), dtype=FP8 if quantise else dtype) if affine else dummy
    factor = x.new_empty(total) if quantise and affine else dummy
    scale, shift = (affine.scale, affine.shift) if affine else (dummy, dummy)
    gate = None if branch is None else branch.gate
    block = power_of_two(width)
    together = TOKENS if rows.ids is None and rows.per_row % TOKENS == 0 else 1
    together = together if total >= _MANY else 1
    _residual_norm_kernel[(total // together,)](
        x,
        stream,
        dummy if branch is None else branch.out,
        dummy if gate is None else gate,
        scale,
        shift,
        dummy if rows.ids is None else rows.ids,
        dummy if chosen is None else chosen.positions,
        dummy if heard is None else heard,
        normed,
        factor,
        width,
        rows.per_row,
        0 if chosen is None else chosen.n,
        0 if gate is None else gate.stride(0),
        0 if affine is None or scale.ndim == 1 else scale.stride(0),
        eps,
        HAS_BRANCH=branch is not None,
        HAS_GATE=gate is not None,
        HAS_IDS=rows.ids is not None,
        CHOSEN=chosen is not None,
        HEARD=heard is not None,
        HAS_NORM=affine is not None,
        MODULATE=affine is not None and scale.ndim == 2,
        QUANTISE=quantise,
        TOKENS=together,
        BLOCK=block,
        num_warps=warps_of(block),
        # A fused multiply-add would round otherwise than the same steps taken one by one.
        enable_fp_fusion=False,
    )
    if affine is None:
        return stream, None
    return stream, Quantised(normed, factor) if quantise else normed


if triton is not None:
    import triton.language as tl

    @kernel
    def _residual_norm_kernel(
        x_ptr,
        stream_ptr,
        branch_ptr,
        gate_ptr,
        scale_ptr,
        shift_ptr,
        ids_ptr,
        position_ptr,
        heard_ptr,
        normed_ptr,
        factor_ptr,
        width,
        per_row,
        n,
        gate_stride,
        affine_stride,
        eps,
        HAS_BRANCH: tl.constexpr,
        HAS_GATE: tl.constexpr,
        HAS_IDS: tl.constexpr,
        CHOSEN: tl.constexpr,
        HEARD: tl.constexpr,
        HAS_NORM: tl.constexpr,
        MODULATE: tl.constexpr,
        QUANTISE: tl.constexpr,
        TOKENS: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        first = tl.program_id(0).to(tl.int64) * TOKENS
        c = tl.arange(0, BLOCK)
        inside = c < width
        row = tl.load(ids_ptr + first).to(tl.int64) if HAS_IDS else first // per_row
        if HAS_GATE:
            gate = tl.load(gate_ptr + row * gate_stride + c, mask=inside, other=0.0)
        if HAS_NORM:
            scale = tl.load(scale_ptr + row * affine_stride + c, mask=inside, other=0.0)
            shift = tl.load(shift_ptr + row * affine_stride + c, mask=inside, other=0.0)
            if MODULATE:
                scale += 1.0
        for i in tl.static_range(TOKENS):
            at = (first + i) * width + c
            source = at
            if CHOSEN:
                source = (row * n + tl.load(position_ptr + first + i)) * width + c
            x = tl.load(x_ptr + source, mask=inside, other=0.0).to(tl.float32)
            if HAS_BRANCH:
                change = tl.load(branch_ptr + at, mask=inside, other=0.0).to(tl.float32)
                if HAS_GATE:
                    change *= gate
                if HEARD:
                    tl.store(heard_ptr + at, change, mask=inside)
                x += change
                tl.store(stream_ptr + at, x, mask=inside)
            if HAS_NORM:
                mean = tl.sum(x, 0) / width
                centred = tl.where(inside, x - mean, 0.0)
                variance = tl.sum(centred * centred, 0) / width
                h = centred * (1.0 / tl.sqrt(variance + eps)) * scale + shift
                if QUANTISE:
                    largest = tl.maximum(tl.max(tl.abs(h), 0), 1e-12)
                    tl.store(factor_ptr + first + i, largest / 448.0)
                    # One division per token; the product may exceed the largest by a rounding.
                    h = tl.minimum(tl.maximum(h * (448.0 / largest), -448.0), 448.0)
                tl.store(normed_ptr + at, h.to(normed_ptr.dtype.element_ty), mask=inside)
