"""How far a reconstructed image is from its original, in pixels and in edges."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from infinity.schedule import Grid

GRADIENT_LEVELS = 3
LEAST_ERROR = 1e-6


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


def corner_weights(side_px: Grid, corner_px: int, weight: float) -> Float[Tensor, "H W"]:
    """``weight`` in the four corner squares of side ``corner_px``, and 1 elsewhere."""
    weights = torch.ones(side_px)
    for rows in (slice(None, corner_px), slice(-corner_px, None)):
        for columns in (slice(None, corner_px), slice(-corner_px, None)):
            weights[rows, columns] = weight
    return weights


def reconstruction_loss(
    decoded: Float[Tensor, "b c H W"],
    image: Float[Tensor, "b c H W"],
    l1_weight: float,
    l2_weight: float,
    gradient_weight: float,
    log_error_weight: float = 0.0,
    pixel_weights: Float[Tensor, "H W"] | None = None,
) -> Float[Tensor, ""]:
    """Weighted L1 + L2 + multi-resolution gradient L1 + logarithm of every image's squared error.

    The logarithm is what PSNR measures: a plain drawing's small error counts as much as an
    intricate one's large error.

    Args:
        decoded, image: in [-1, 1]; computed in fp32.
        l1_weight, l2_weight, gradient_weight, log_error_weight: of the four terms.
        pixel_weights: factor of every pixel's difference.
    """
    difference = decoded.float() - image.float()
    if pixel_weights is not None:
        difference = difference * pixel_weights
    squared = difference.square().mean(dim=(1, 2, 3))
    return (
        l1_weight * difference.abs().mean()
        + l2_weight * squared.mean()
        + gradient_weight * gradient_l1(difference)
        + log_error_weight * squared.clamp_min(LEAST_ERROR).log().mean()
    )


def psnr_db(
    decoded: Float[Tensor, "b c H W"], image: Float[Tensor, "b c H W"]
) -> Float[Tensor, " b"]:
    """Peak signal-to-noise ratio of each image, in dB, for values clamped to [-1, 1]."""
    error = (decoded.float().clamp(-1, 1) - image.float()).square().mean(dim=(1, 2, 3))
    return 10 * (4 / error.clamp_min(1e-10)).log10()
