"""Peak signal-to-noise ratio of pictures against their references."""

from jaxtyping import Float
from torch import Tensor

CAP_DB = 100.0
"""Of identical pictures, so that means over pictures stay finite."""


def psnr(
    images: Float[Tensor, "b 3 h w"], references: Float[Tensor, "b 3 h w"]
) -> Float[Tensor, " b"]:
    """``10 log10(1 / MSE)`` in dB over pixels and channels, at most ``CAP_DB``; higher is closer.

    Args:
        images: values in [0, 1].
        references: of the same pictures, likewise.
    """
    error = (images.double() - references.double()).square().flatten(1).mean(1)
    return -10 * error.clamp_min(10 ** (-CAP_DB / 10)).log10()
