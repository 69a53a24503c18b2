"""Precomputed examples for the decoder: composed images and their features, on the device."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from infinity.training.run import synchronize
from infinity.training.source import ImageSource

CHUNK = 64


@dataclass(frozen=True)
class ImageCache:
    """``n`` images and what the encoder makes of them.

    Attributes:
        images: ``(n, 3, H, W)`` sRGB bytes, channels last in memory.
        features: ``(n, d, h, w)`` tokenizer features before quantisation, half precision.
        seconds: spent on building it.
    """

    images: UInt8[Tensor, "n 3 H W"]
    features: Float[Tensor, "n d h w"]
    seconds: float

    def __len__(self) -> int:
        return self.images.shape[0]

    def batch(
        self, rows: Int64[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b 3 H W"], Float[Tensor, "b d h w"]]:
        """Images in [-1, 1] and fp32 features."""
        return self.images[rows].float() / 127.5 - 1, self.features[rows].float()

    def draw(
        self, seed: int, step: int, size: int
    ) -> tuple[Float[Tensor, "b 3 H W"], Float[Tensor, "b d h w"]]:
        """A random batch that seed and step fix."""
        generator = torch.Generator(self.images.device).manual_seed(seed * 2**32 + step)
        rows = torch.randint(len(self), (size,), generator=generator, device=self.images.device)
        return self.batch(rows)


@torch.no_grad()
def build_image_cache(
    source: ImageSource,
    features: Callable[[Float[Tensor, "b 3 H W"]], Float[Tensor, "b d h w"]],
    images: int,
    device: torch.device,
) -> ImageCache:
    """Composes and encodes ``images`` images, in bf16 on CUDA and in fp32 elsewhere.

    Args:
        source: of images; captions are not kept.
        features: the frozen encoder, with whatever normalisation belongs to it.
        images: how many.
        device: where everything is kept.
    """
    started = time.monotonic()
    pixels: list[Tensor] = []
    encoded: list[Tensor] = []
    chunk = min(CHUNK, images)
    for start in range(0, images, chunk):
        image = source.batch(chunk)[0].contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            f = features(image)
        taken = min(chunk, images - start)
        pixels.append(((image[:taken] + 1) * 127.5).round().clamp(0, 255).byte())
        encoded.append(f[:taken].half())
    cache = ImageCache(torch.cat(pixels), torch.cat(encoded), time.monotonic() - started)
    synchronize(device)
    return cache
