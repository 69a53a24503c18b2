"""Multi-scale binary spherical quantisation, as pure functions on fp32 latents ``(b, d, h, w)``.

Bits are channel-last and bool: ``(b, h_k, w_k, d)``, True = positive; zero is bit 0. A scale whose
grid equals the latent's is never resampled. ``gains`` holds one code amplitude per scale; None
stands for ``1/sqrt(d)`` at every scale, the unit-norm codes of the released tokenizers.

Source: spec bsq-vae §3, §4 and §6; Infinity (arXiv 2412.04431), sec. 3.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from infinity.schedule import Grid

Bits = Bool[Tensor, "b _ _ d"] | Integer[Tensor, "b _ _ d"]
FlipBits = Callable[[int, Tensor], Tensor]
"""``(scale index, bits) → bits to feed back``: how self-correction training corrupts a scale."""


def unit_rms(f: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
    """``f`` scaled to root mean square 1 over the channels of every position."""
    return f * torch.rsqrt(f.square().mean(dim=1, keepdim=True) + 1e-6)


def to_bits(residual: Float[Tensor, "b d h w"]) -> Bool[Tensor, "b h w d"]:
    """Signs of a residual, True where positive. Normalising it first would change no sign."""
    return (residual > 0).movedim(1, -1)


def codes_from_bits(
    bits: Bits, gain: float | Float[Tensor, ""] | None = None
) -> Float[Tensor, "b d _ _"]:
    """``(2·bit − 1) · gain``, channels first; the gain defaults to ``1/sqrt(d)``."""
    signs = bits.movedim(-1, 1).float() * 2 - 1
    return signs * (bits.shape[-1] ** -0.5 if gain is None else gain)


def area_down(x: Float[Tensor, "b d h w"], grid: Grid) -> Float[Tensor, "b d h2 w2"]:
    """``x`` averaged over (possibly overlapping) bins, one per cell of ``grid``."""
    return x if tuple(x.shape[-2:]) == grid else F.adaptive_avg_pool2d(x, grid)


def resize(x: Float[Tensor, "b d h w"], grid: Grid) -> Float[Tensor, "b d h2 w2"]:
    """``x`` sampled bilinearly at the cell centres of ``grid``, no antialiasing, in either
    direction.
    """
    if tuple(x.shape[-2:]) == grid:
        return x
    return F.interpolate(x, size=grid, mode="bilinear", align_corners=False)


def accumulate(
    latent: Float[Tensor, "b d h w"],
    bits: Bits,
    gain: float | Float[Tensor, ""] | None = None,
) -> Float[Tensor, "b d h w"]:
    """``latent`` plus the codes of one scale, upsampled to the latent's grid."""
    return latent + resize(codes_from_bits(bits, gain), tuple(latent.shape[-2:]))


def gain_of(gains: Float[Tensor, " k"] | None, scale: int) -> Float[Tensor, ""] | None:
    return None if gains is None else gains[scale]


def encode_residuals(
    f: Float[Tensor, "b d h w"], grids: Sequence[Grid], gains: Float[Tensor, " k"] | None = None
) -> tuple[Float[Tensor, "b d h w"], list[Bool[Tensor, "b _ _ d"]]]:
    """Summed codes of features ``f`` and the bits of every scale, coarse to fine."""
    z = torch.zeros_like(f)
    labels = []
    for k, grid in enumerate(grids):
        bits = to_bits(area_down(f - z, grid))
        z = accumulate(z, bits, gain_of(gains, k))
        labels.append(bits)
    return z, labels


def sum_codes(
    bits: Sequence[Bits], grid: Grid, gains: Float[Tensor, " k"] | None = None
) -> Float[Tensor, "b d h w"]:
    """Sum over scales of the codes, upsampled to the final latent ``grid``."""
    b, d = bits[0].shape[0], bits[0].shape[-1]
    z = torch.zeros(b, d, *grid, device=bits[0].device)
    for k, scale_bits in enumerate(bits):
        z = accumulate(z, scale_bits, gain_of(gains, k))
    return z


def bits_to_tokens(bits: Bits, patchify: bool) -> Tensor:
    """``(b, h, w, d)`` bits as transformer tokens ``(b, l, D)``, row-major.

    With 2×2 patchify, channel ``4c + 2dy + dx`` of a token is bit ``c`` at offset ``(dy, dx)`` of
    its cell.
    """
    if patchify:
        b, h, w, d = bits.shape
        cells = bits.reshape(b, h // 2, 2, w // 2, 2, d)
        return cells.permute(0, 1, 3, 5, 2, 4).reshape(b, (h // 2) * (w // 2), 4 * d)
    return bits.flatten(1, 2)


def tokens_to_bits(tokens: Tensor, grid: Grid, patchify: bool) -> Tensor:
    """Inverse of :func:`bits_to_tokens`; ``grid`` is the latent grid ``(h, w)`` of the scale."""
    b, _, width = tokens.shape
    h, w = grid
    if patchify:
        cells = tokens.reshape(b, h // 2, w // 2, width // 4, 2, 2)
        return cells.permute(0, 1, 4, 2, 5, 3).reshape(b, h, w, width // 4)
    return tokens.reshape(b, h, w, width)


def next_scale_input(
    latent: Float[Tensor, "b d h w"], grid: Grid, patchify: bool
) -> Float[Tensor, "b l D"]:
    """Transformer input of the next scale, whose latent grid is ``grid``: the latent sampled there,
    as tokens.
    """
    x = resize(latent, grid)
    if patchify:
        x = F.pixel_unshuffle(x, 2)
    return x.flatten(2).transpose(1, 2)


def self_correction(
    f: Float[Tensor, "b d h w"],
    grids: Sequence[Grid],
    flip: FlipBits | None = None,
    *,
    patchify: bool = False,
    gains: Float[Tensor, " k"] | None = None,
) -> tuple[Float[Tensor, "b l_in D"], Bool[Tensor, "b l D"]]:
    """Teacher-forcing inputs of scales 2…K and labels of scales 1…K, concatenated over scales.

    Every scale's label is the sign of what is missing from the *fed* (possibly flipped) history, so
    a model trained on them learns to correct its own mistakes. ``grids`` may be a prefix of the
    schedule: the latent's own grid is final.

    Args:
        f: tokenizer features.
        grids: latent grid per scale.
        flip: corrupts the bits fed back after a scale; None feeds the labels.
        patchify: one token covers 2×2 latent cells.
        gains: code amplitude per scale.

    Source: spec bsq-vae §6 "Bitwise self-correction"; Infinity (arXiv 2412.04431), sec. 3.4.
    """
    z = torch.zeros_like(f)
    inputs, labels = [], []
    for k, grid in enumerate(grids):
        bits = to_bits(area_down(f - z, grid))
        labels.append(bits_to_tokens(bits, patchify))
        if k + 1 < len(grids):
            z = accumulate(z, bits if flip is None else flip(k, bits), gain_of(gains, k))
            inputs.append(next_scale_input(z, grids[k + 1], patchify))
    width = f.shape[1] * (4 if patchify else 1)
    empty = f.new_zeros(f.shape[0], 0, width)
    return torch.cat([empty, *inputs], dim=1), torch.cat(labels, dim=1)
