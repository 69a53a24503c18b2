"""Group norm, SiLU, residual additions and interleaving of pixels on channels-last maps.

A map is ``(B, P, C)``: P pixels row-major. It may stand for ``x + bias``, so that a convolution's
bias costs no pass of its own.

Statistics are taken in one pass: every program sums its pixels' distance to its own first pixel,
which keeps the squares free of cancellation, and the parts are then merged by their means.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from infinity.ops.fused.support import kernel, power_of_two, triton, usable

_TILE = 8192
_PER_THREAD = 64
"""Numbers of a tile that a thread of the moments' kernel reads."""

_MOST_TILES, _PROGRAMS = 32, 2048
"""Of a program; programs that there should be before one takes a further tile."""


@dataclass(frozen=True)
class Moments:
    """Mean and summed squared distance to it of every part of a map, ``(B, parts, C)`` fp32 each.

    Attributes:
        pixels: of a part; the last one may have fewer.
    """

    mean: Tensor
    square: Tensor
    pixels: int


def _tiling(pixels: int, channels: int) -> tuple[int, int, int, int]:
    """Pixels of a tile, tiles of a program, programs, and their warps.

    A warp's threads lie side by side along the channels, eight each, so that sums over pixels stay
    inside a thread or two: summed across warps, all 32 lanes of one met in a bank of shared memory,
    which took longer than reading the tile.
    """
    block = power_of_two(channels)
    warps = max(1, min(8, block // 256))
    tile = max(1, min(_PER_THREAD * 32 * warps // block, power_of_two(pixels)))
    tiles = max(1, min(_MOST_TILES, pixels // (tile * _PROGRAMS)))
    return tile, tiles, -(-pixels // (tile * tiles)), warps


def reference_add(x: Tensor, y: Tensor | None, bias: Tensor | None) -> Tensor:
    """``x + y + bias`` in fp32, in the dtype of ``x``."""
    total = x.float()
    if y is not None:
        total = total + y.float()
    if bias is not None:
        total = total + bias
    return total.to(x.dtype)


def reference_interleave(x: Float[Tensor, "b h1 w1 c4"]) -> Float[Tensor, "b p c"]:
    """The map whose pixel ``(2y + i, 2x + j)`` is phase ``(i, j)`` of position ``(y + i, x + j)``.

    Args:
        x: ``(H + 1) × (W + 1)`` positions, each with the channels of phases (0, 0) to (1, 1).
    """
    h, w = x.shape[1] - 1, x.shape[2] - 1
    x = x.unflatten(3, (2, 2, -1))
    rows = [torch.stack([x[:, i : h + i, j : w + j, i, j] for j in (0, 1)], 3) for i in (0, 1)]
    return torch.stack(rows, 2).flatten(1, 4)


def reference_norm(
    x: Float[Tensor, "b p c"],
    bias: Float[Tensor, " c"] | None,
    weight: Float[Tensor, " c"],
    shift: Float[Tensor, " c"],
    groups: int,
    eps: float,
) -> Float[Tensor, "b p c"]:
    """``silu(group_norm(x + bias))``, in the dtype of ``x``."""
    total = x.float() if bias is None else x.float() + bias
    normed = F.group_norm(total.mT, groups, weight, shift, eps)
    return F.silu(normed).mT.to(x.dtype)


def add(
    x: Float[Tensor, "b p c"],
    y: Float[Tensor, "b p c"] | None,
    bias: Float[Tensor, " c"] | None,
) -> tuple[Float[Tensor, "b p c"], Moments]:
    """``x + y + bias`` and its moments; without ``y`` and ``bias`` only the moments are taken."""
    out = x if y is None and bias is None else torch.empty_like(x)
    return out, _add(x, y, bias, out)


def interleave(x: Float[Tensor, "b h1 w1 c4"]) -> tuple[Float[Tensor, "b p c"], Moments]:
    """:func:`reference_interleave` and the moments of its map; ``x`` is contiguous."""
    images, h1, w1, channels = x.shape
    out = x.new_empty((images, 4 * (h1 - 1) * (w1 - 1), channels // 4))
    return out, _add(x, None, None, out, w1 - 1)


def _add(x: Tensor, y: Tensor | None, bias: Tensor | None, out: Tensor, width: int = 0) -> Moments:
    """Moments of ``out``, which is written unless it is ``x``; ``width`` says to interleave."""
    images, pixels, channels = out.shape
    tile, tiles, parts, warps = _tiling(pixels, channels)
    mean = x.new_empty((images, parts, channels), dtype=torch.float32)
    square = torch.empty_like(mean)
    _map_add_kernel[(parts, images)](
        x,
        x if y is None else y,
        x if bias is None else bias,
        out,
        mean,
        square,
        pixels,
        channels,
        x[0].numel(),
        width,
        HAS_Y=y is not None,
        HAS_BIAS=bias is not None,
        WRITE=out is not x,
        INTERLEAVE=width > 0,
        TILES=tiles,
        BLOCK_P=tile,
        BLOCK_C=power_of_two(channels),
        num_warps=warps,
    )
    return Moments(mean, square, tile * tiles)


def norm_silu(
    x: Float[Tensor, "b p c"],
    moments: Moments,
    bias: Float[Tensor, " c"] | None,
    weight: Float[Tensor, " c"],
    shift: Float[Tensor, " c"],
    groups: int,
    eps: float,
) -> Float[Tensor, "b p c"]:
    """``silu(group_norm(x + bias))`` from the moments of ``x``.

    Args:
        x: the map.
        moments: of ``x``, without ``bias``.
        bias: of the convolution that made ``x``.
        weight, shift: of the norm, fp32.
        groups: of the norm.
        eps: of the norm.
    """
    images, pixels, channels = x.shape
    factor = x.new_empty((images, channels), dtype=torch.float32)
    offset = torch.empty_like(factor)
    parts = moments.mean.shape[1]
    size = channels // groups
    block = power_of_two(size)
    _map_merge_kernel[(groups, images)](
        moments.mean,
        moments.square,
        weight,
        shift,
        x if bias is None else bias,
        factor,
        offset,
        pixels,
        channels,
        parts,
        moments.pixels,
        size,
        eps,
        HAS_BIAS=bias is not None,
        BLOCK_N=max(16, 2048 // block),
        BLOCK_C=block,
        num_warps=8,
    )
    out = torch.empty_like(x)
    tile = max(1, min(_TILE // power_of_two(channels), power_of_two(pixels)))
    _map_apply_kernel[(-(-pixels // tile), images)](
        x,
        factor,
        offset,
        out,
        pixels,
        channels,
        BLOCK_P=tile,
        BLOCK_C=power_of_two(channels),
        num_warps=8,
    )
    return out


__all__ = ["Moments", "add", "interleave", "norm_silu", "reference_add", "reference_norm", "usable"]

if triton is not None:
    import triton.language as tl

    @kernel
    def _interleaved(p, width):
        """Where pixel ``p`` lies among the phases of :func:`reference_interleave`."""
        row, column = p // (2 * width), p % (2 * width)
        position = ((row + 1) >> 1) * (width + 1) + ((column + 1) >> 1)
        return 4 * position + 2 * (row & 1) + (column & 1)

    @kernel
    def _map_add_kernel(
        x_ptr,
        y_ptr,
        bias_ptr,
        out_ptr,
        mean_ptr,
        square_ptr,
        pixels,
        channels,
        x_values,
        width,
        HAS_Y: tl.constexpr,
        HAS_BIAS: tl.constexpr,
        WRITE: tl.constexpr,
        INTERLEAVE: tl.constexpr,
        TILES: tl.constexpr,
        BLOCK_P: tl.constexpr,
        BLOCK_C: tl.constexpr,
    ):
        part, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
        c = tl.arange(0, BLOCK_C)
        wide = c < channels
        begin = part * TILES * BLOCK_P
        base, x_base = image * pixels * channels, image * x_values
        bias = tl.zeros((BLOCK_C,), tl.float32)
        if HAS_BIAS:
            bias = tl.load(bias_ptr + c, mask=wide, other=0.0)
        first = _interleaved(begin, width) if INTERLEAVE else begin
        origin = tl.load(x_ptr + x_base + first.to(tl.int64) * channels + c, mask=wide, other=0.0)
        origin = origin.to(tl.float32) + bias
        total = tl.zeros((BLOCK_C,), tl.float32)
        square = tl.zeros((BLOCK_C,), tl.float32)
        for i in range(TILES):
            p = begin + i * BLOCK_P + tl.arange(0, BLOCK_P)
            mask = (p < pixels)[:, None] & wide[None]
            at = base + p.to(tl.int64)[:, None] * channels + c[None]
            source = _interleaved(p, width) if INTERLEAVE else p
            x_at = x_base + source.to(tl.int64)[:, None] * channels + c[None]
            x = tl.load(x_ptr + x_at, mask=mask, other=0.0).to(tl.float32)
            if HAS_Y:
                x += tl.load(y_ptr + at, mask=mask, other=0.0).to(tl.float32)
            x += bias[None]
            if WRITE:
                rounded = x.to(out_ptr.dtype.element_ty)
                tl.store(out_ptr + at, rounded, mask=mask)
                x = rounded.to(tl.float32)
            distance = tl.where(mask, x - origin[None], 0.0)
            total += tl.sum(distance, 0)
            square += tl.sum(distance * distance, 0)
        count = tl.minimum(pixels - begin, TILES * BLOCK_P).to(tl.float32)
        square -= total * total / count
        to = (image * tl.num_programs(0) + part) * channels + c
        tl.store(mean_ptr + to, origin + total / count, mask=wide)
        tl.store(square_ptr + to, tl.maximum(square, 0.0), mask=wide)

    @kernel
    def _map_merge_kernel(
        mean_ptr,
        square_ptr,
        weight_ptr,
        shift_ptr,
        bias_ptr,
        factor_ptr,
        offset_ptr,
        pixels,
        channels,
        parts,
        part_pixels,
        size,
        eps,
        HAS_BIAS: tl.constexpr,
        BLOCK_N: tl.constexpr,
        BLOCK_C: tl.constexpr,
    ):
        group, image = tl.program_id(0), tl.program_id(1)
        inner = tl.arange(0, BLOCK_C)
        c = group * size + inner
        wide = inner < size
        bias = tl.zeros((BLOCK_C,), tl.float32)
        if HAS_BIAS:
            bias = tl.load(bias_ptr + c, mask=wide, other=0.0)
        base = image.to(tl.int64) * parts * channels
        everything = pixels.to(tl.float32) * size
        sums = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
        for begin in range(0, parts, BLOCK_N):
            n = begin + tl.arange(0, BLOCK_N)
            mask = (n < parts)[:, None] & wide[None]
            count = tl.minimum(pixels - n * part_pixels, part_pixels).to(tl.float32)
            at = base + n.to(tl.int64)[:, None] * channels + c[None]
            mean = tl.load(mean_ptr + at, mask=mask, other=0.0) + bias[None]
            sums += tl.where(mask, mean * count[:, None], 0.0)
        mean_all = tl.sum(tl.sum(sums, 1), 0) / everything
        squares = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
        for begin in range(0, parts, BLOCK_N):
            n = begin + tl.arange(0, BLOCK_N)
            mask = (n < parts)[:, None] & wide[None]
            count = tl.minimum(pixels - n * part_pixels, part_pixels).to(tl.float32)
            at = base + n.to(tl.int64)[:, None] * channels + c[None]
            mean = tl.load(mean_ptr + at, mask=mask, other=0.0) + bias[None] - mean_all
            inside = tl.load(square_ptr + at, mask=mask, other=0.0)
            squares += tl.where(mask, inside + mean * mean * count[:, None], 0.0)
        variance = tl.sum(tl.sum(squares, 1), 0) / everything
        weight = tl.load(weight_ptr + c, mask=wide, other=0.0) / tl.sqrt(variance + eps)
        shift = tl.load(shift_ptr + c, mask=wide, other=0.0)
        to = image.to(tl.int64) * channels + c
        tl.store(factor_ptr + to, weight, mask=wide)
        tl.store(offset_ptr + to, (bias - mean_all) * weight + shift, mask=wide)

    @kernel
    def _map_apply_kernel(
        x_ptr,
        factor_ptr,
        offset_ptr,
        out_ptr,
        pixels,
        channels,
        BLOCK_P: tl.constexpr,
        BLOCK_C: tl.constexpr,
    ):
        image = tl.program_id(1).to(tl.int64)
        p = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
        c = tl.arange(0, BLOCK_C)
        wide = c < channels
        mask = (p < pixels)[:, None] & wide[None]
        at = image * pixels * channels + p[:, None] * channels + c[None]
        factor = tl.load(factor_ptr + image * channels + c, mask=wide, other=0.0)
        offset = tl.load(offset_ptr + image * channels + c, mask=wide, other=0.0)
        x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        x = x * factor[None] + offset[None]
        x = x / (1.0 + tl.exp(-x))
        tl.store(out_ptr + at, x.to(out_ptr.dtype.element_ty), mask=mask)
