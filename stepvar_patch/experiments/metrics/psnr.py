"""Peak signal-to-noise ratio of a picture against its reference."""

from jaxtyping import Float
from torch import Tensor

CAP_DB = 100.0
"""Of identical pictures, so that means over pictures stay finite."""


def psnr(image: Float[Tensor, "3 h w"], reference: Float[Tensor, "3 h w"]) -> float:
    """``10 log10(1 / MSE)`` in dB over pixels and channels, at most ``CAP_DB``; higher is closer.

    Args:
        image: values in [0, 1].
        reference: likewise.
    """
    error = (image.double() - reference.double()).square().mean().clamp_min(10 ** (-CAP_DB / 10))
    return float(-10 * error.log10())
