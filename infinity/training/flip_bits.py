"""Bitwise self-correction: which bits of the history a training step corrupts.

Source: Infinity (arXiv 2412.04431), sec. 3.4; spec bsq-vae §6; the draw per image is ours.
"""

import torch
from torch import Tensor

from infinity.tokenizer.quantizer import FlipBits
from infinity.training.config import SelfCorrectionConfig


def flip_bits(
    config: SelfCorrectionConfig, images: int, scales: int, generator: torch.Generator
) -> FlipBits:
    """The corruption of one batch: flip probabilities are drawn here, flips when it is called.

    Args:
        config: strength and rule.
        images: in the batch.
        scales: of the schedule.
        generator: on the device of the bits.
    """
    device = generator.device
    shape = (images, 1) if config.per == "image" else (1, scales)
    strength = torch.rand(shape, generator=generator, device=device) * config.strength
    noisy = torch.rand(shape, generator=generator, device=device) >= config.clean
    probability = (strength * noisy).expand(images, scales)

    def flip(scale: int, bits: Tensor) -> Tensor:
        noise = torch.rand(bits.shape, generator=generator, device=device)
        return bits ^ (noise < probability[:, scale, None, None, None])

    return flip
