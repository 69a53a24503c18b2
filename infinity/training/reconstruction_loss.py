"""How far a reconstructed image is from its original, in pixels and in edges."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from infinity.schedule import Grid

GRADIENT_LEVELS = 3


def gradient_l1(difference: Float[Tensor, "b c H W"]) -> Float[Tensor, ""]:
    """Mean absolute horizontal plus vertical gradient, averaged over three halvings of the size.

    Penalises blurred and ringing edges, which a plain pixel loss hardly sees.
    """
    total = difference.new_zeros(())
    for level in range(GRADIENT_LEVELS):
        if level:
            difference = F.avg_pool2d(difference, 2)
        across = (difference[..., 1:] - difference[..., :-1]).abs().mean()
        down = (difference[..., 1:, :] - difference[..., :-1, :]).abs().mean()
        total = total + across + down
    return total / GRADIENT_LEVELS


def border_weights(side_px: Grid, margin_px: int, weight: float) -> Float[Tensor, "H W"]:
    """``weight`` within ``margin_px`` of the border and 1 elsewhere."""
    weights = torch.full(side_px, weight)
    weights[margin_px:-margin_px, margin_px:-margin_px] = 1.0
    return weights


def reconstruction_loss(
    decoded: Float[Tensor, "b c H W"],
    image: Float[Tensor, "b c H W"],
    l1_weight: float,
    l2_weight: float,
    gradient_weight: float,
    pixel_weights: Float[Tensor, "H W"] | None = None,
) -> Float[Tensor, ""]:
    """Weighted L1 + L2 + multi-resolution gradient L1 of images in [-1, 1], fp32."""
    difference = decoded.float() - image.float()
    if pixel_weights is not None:
        difference = difference * pixel_weights
    return (
        l1_weight * difference.abs().mean()
        + l2_weight * difference.square().mean()
        + gradient_weight * gradient_l1(difference)
    )


def psnr_db(
    decoded: Float[Tensor, "b c H W"], image: Float[Tensor, "b c H W"]
) -> Float[Tensor, " b"]:
    """Peak signal-to-noise ratio of each image, in dB, for values clamped to [-1, 1]."""
    error = (decoded.float().clamp(-1, 1) - image.float()).square().mean(dim=(1, 2, 3))
    return 10 * (4 / error.clamp_min(1e-10)).log10()
