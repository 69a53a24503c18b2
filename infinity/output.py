"""What a call of the pipeline returns, and pictures in the forms that a caller may ask for."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

OutputType = Literal["pil", "np", "pt", "latent"]


@dataclass(frozen=True)
class PipelineOutput:
    """What a call returns, prompt-major: all images of the first prompt, then the second's.

    Attributes:
        images: PIL images; ``np`` uint8 ``(H, W, 3)``; ``pt`` fp32 ``(3, H, W)`` in [0, 1]; or
            ``latent`` fp32 ``(d, Hv, Wv)``.
        seeds: the seed of every image.
        timings: milliseconds of the call's stages, ``text``, ``scales`` and ``decode``.
        latents: ``(images, d, Hv, Wv)`` summed codes.
    """

    images: list[Any]
    seeds: tuple[int, ...]
    timings: dict[str, float]
    latents: Float[Tensor, "images d hv wv"]


def as_output(
    pictures: Float[Tensor, "b 3 h w"],
    output_type: Literal["pil", "np", "pt"],
    *,
    truncate: bool = False,
) -> list[Any]:
    """Pictures as the caller wants them.

    Args:
        pictures: in [−1, 1].
        output_type: see :class:`PipelineOutput`.
        truncate: to uint8, as the original program does, instead of rounding.
    """
    if output_type == "pt":
        return list((pictures + 1) / 2)
    scaled = (pictures + 1) / 2 * 255
    if not truncate:
        scaled = scaled.round()
    arrays = scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    if output_type == "np":
        return list(arrays)
    return [Image.fromarray(np.ascontiguousarray(array)) for array in arrays]
