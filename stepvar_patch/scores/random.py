"""A control: tokens at random, from a counter rather than a generator."""

import torch
from jaxtyping import Float
from torch import Tensor

from infinity.sampling.noise import philox_4x32

_MASK = 0xFFFFFFFF


def random_score(
    si: int, call: int, positions: int, seed: int, device: torch.device | str = "cpu"
) -> Float[Tensor, " n"]:
    """Uniform numbers in (0, 1), a function of (seed, scale, call, position) alone."""
    place = torch.arange(positions, device=device)
    zero = torch.zeros_like(place)
    key = (zero[:1] + (seed & _MASK), zero[:1] + (seed >> 32))
    words = philox_4x32((place, zero + call, zero + si, zero), key)
    return (words[0].double() + 0.5) / 2.0**32
