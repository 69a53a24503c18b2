"""Random numbers of a generation call, drawn per image and for every position, whatever is
computed or pruned.

Sampling a bit needs a pair of exponential draws (:func:`infinity.sampling.bits.sample_bits`); a
noise source hands out ``(B, count, 2)`` of them per scale.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from infinity.ops.fused import usable
from infinity.ops.fused.uniform import philox_uniform
from infinity.upload import upload

_MASK = 0xFFFFFFFF
_ROUNDS = 10
_ROUND_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)


@runtime_checkable
class NoiseSource(Protocol):
    """Exponential draws, one call per scale in order, also for a scale that is left out."""

    def exponential(self, si: int, bits: int) -> Float[Tensor, "images bits 2"]: ...


def philox_4x32(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four random 32-bit words per counter, as int64 tensors.

    Args:
        counter: four int64 tensors of 32-bit words, broadcastable.
        key: two int64 tensors of 32-bit words, broadcastable.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011, Philox4x32.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # The 64-bit products are taken in halves of 16 bits, so that signed int64 never overflows.
        hi0, lo0 = _multiply(c0, _ROUND_MULTIPLIERS[0])
        hi1, lo1 = _multiply(c2, _ROUND_MULTIPLIERS[1])
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + _KEY_INCREMENTS[0]) & _MASK, (k1 + _KEY_INCREMENTS[1]) & _MASK
    return c0, c1, c2, c3


def _multiply(a: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    low = (a & 0xFFFF) * factor
    high = (a >> 16) * factor + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


class PerImageNoise:
    """Counter-based draws: a function of (image seed, scale, bit) alone.

    An image therefore never depends on batch composition, order, sharding, device, or on which
    tokens of itself or of others were computed. The stream is Philox4x32-10 with the image's seed
    as key and (bit, scale) as counter.

    Args:
        seeds: one integer in [0, 2^63) per image.
        device: where draws are made.

    Raises:
        ValueError: a seed outside that range.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str) -> None:
        for seed in seeds:
            if not 0 <= seed < 1 << 63:
                raise ValueError(f"seed {seed} must be in [0, 2^63)")
        numbers = torch.tensor(list(seeds), dtype=torch.int64)
        self.seeds: Int64[Tensor, " images"] = upload(numbers, device)

    def exponential(self, si: int, bits: int) -> Float[Tensor, "images bits 2"]:
        if usable(self.seeds, "uniform"):
            uniform = philox_uniform(self.seeds, si, 2 * bits)
            return uniform.log_().neg_().unflatten(1, (bits, 2))
        low, high = self.seeds[:, None] & _MASK, self.seeds[:, None] >> 32
        blocks = torch.arange((bits + 1) // 2, device=low.device)[None]
        zero = torch.zeros_like(blocks)
        words = philox_4x32((blocks, zero, zero + si, zero), (low, high))
        words_BN4 = torch.stack(torch.broadcast_tensors(*words), dim=-1)
        # 23 random bits plus a half: uniform on a grid inside (0, 1), exact in fp32, so the
        # logarithm is finite.
        uniform = ((words_BN4 >> 9).float() + 0.5) * 2.0**-23
        return -uniform.log().flatten(1)[:, : 2 * bits].unflatten(1, (bits, 2))


class GeneratorNoise:
    """Draws exactly as the original program does: one generator for the batch, one draw per scale
    (spec §7.5).

    Results depend on the batch size and, through the generator, on device type and PyTorch build.
    """

    def __init__(self, seed: int, images: int, device: torch.device | str) -> None:
        self._generator = torch.Generator(device).manual_seed(seed)
        self._images = images
        self._device = device

    def exponential(self, si: int, bits: int) -> Float[Tensor, "images bits 2"]:
        draws = torch.empty(self._images * bits, 2, device=self._device)
        return draws.exponential_(generator=self._generator).view(self._images, bits, 2)
