"""How far a reconstructed image is from its original, in pixels and in edges."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from infinity.schedule import Grid

LEAST_ERROR = 1e-6
LEAST_MASKED, MOST_MASKED = 0.5, 3.0


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Of the terms of :func:`reconstruction_loss`.

    Attributes:
        l1, l2, gradient, log_error: factors of the four terms.
        gradient_levels: sizes at which gradients are compared, each half of the one before.
        masking_contrast: see :func:`masking_weights`; 0 = all pixels alike.
    """

    l1: float
    l2: float
    gradient: float
    log_error: float = 0.0
    gradient_levels: int = 3
    masking_contrast: float = 0.0


def gradient_l1(
    difference: Float[Tensor, "b c H W"],
    levels: int = 3,
    pixel_weights: Float[Tensor, "#b 1 H W"] | None = None,
) -> Float[Tensor, ""]:
    """Mean absolute horizontal plus vertical gradient, averaged over ``levels`` halvings of the
    size.

    Penalises blurred and ringing edges, which a plain pixel loss hardly sees.
    """
    weights = difference.new_ones(1, 1, *difference.shape[-2:])
    if pixel_weights is not None:
        weights = pixel_weights
    total = difference.new_zeros(())
    for level in range(levels):
        if level:
            difference, weights = F.avg_pool2d(difference, 2), F.avg_pool2d(weights, 2)
        across = (difference[..., 1:] - difference[..., :-1]).abs() * weights[..., 1:]
        down = (difference[..., 1:, :] - difference[..., :-1, :]).abs() * weights[..., 1:, :]
        total = total + across.mean() + down.mean()
    return total / levels


def corner_weights(side_px: Grid, corner_px: int, weight: float) -> Float[Tensor, "H W"]:
    """``weight`` in the four corner squares of side ``corner_px``, and 1 elsewhere."""
    weights = torch.ones(side_px)
    for rows in (slice(None, corner_px), slice(-corner_px, None)):
        for columns in (slice(None, corner_px), slice(-corner_px, None)):
            weights[rows, columns] = weight
    return weights


@torch.no_grad()
def masking_weights(image: Float[Tensor, "b c H W"], half_at: float) -> Float[Tensor, "b 1 H W"]:
    """How much an error at a pixel counts: most where the picture is flat, least beside edges.

    Strong contrast hides errors (masking), and a decoder's largest errors are at edges: counted
    alike, they leave blotches in flat areas, which are seen first.

    Args:
        image: in [-1, 1].
        half_at: contrast at which an error counts half of what it counts in a flat area.

    Returns:
        Weights relative to the picture's mean, limited to ``LEAST_MASKED`` … ``MOST_MASKED`` and
        brought to a mean of 1 once more.
    """
    around = F.pad(image, (2, 2, 2, 2), mode="replicate")
    around = F.avg_pool2d(F.avg_pool2d(around, 3, stride=1), 3, stride=1)
    contrast = (image - around).abs().amax(dim=1, keepdim=True)
    weights = half_at / (F.max_pool2d(contrast, 5, stride=1, padding=2) + half_at)
    weights = weights / weights.mean(dim=(1, 2, 3), keepdim=True)
    weights = weights.clamp(LEAST_MASKED, MOST_MASKED)
    return weights / weights.mean(dim=(1, 2, 3), keepdim=True)


def reconstruction_loss(
    decoded: Float[Tensor, "b c H W"],
    image: Float[Tensor, "b c H W"],
    weights: LossWeights,
    pixel_weights: Float[Tensor, "H W"] | None = None,
) -> Float[Tensor, ""]:
    """Weighted L1 + L2 + multi-resolution gradient L1 + logarithm of every image's squared error.

    The logarithm is what PSNR measures: a plain drawing's small error counts as much as an
    intricate one's large error.

    Args:
        decoded, image: in [-1, 1]; computed in fp32.
        weights: of the terms.
        pixel_weights: factor of every pixel's difference, hence squared in L2 and the logarithm;
            gradients are weighed themselves. So are the weights of masking.
    """
    image = image.float()
    difference = decoded.float() - image
    factors = difference.new_ones(1, 1, *image.shape[-2:])
    if pixel_weights is not None:
        factors = factors * pixel_weights
    if weights.masking_contrast:
        factors = factors * masking_weights(image, weights.masking_contrast)
    gradient = gradient_l1(difference, weights.gradient_levels, factors)
    difference = difference * factors
    squared = difference.square().mean(dim=(1, 2, 3))
    return (
        weights.l1 * difference.abs().mean()
        + weights.l2 * squared.mean()
        + weights.gradient * gradient
        + weights.log_error * squared.clamp_min(LEAST_ERROR).log().mean()
    )


def psnr_db(
    decoded: Float[Tensor, "b c H W"], image: Float[Tensor, "b c H W"]
) -> Float[Tensor, " b"]:
    """Peak signal-to-noise ratio of each image, in dB, for values clamped to [-1, 1]."""
    error = (decoded.float().clamp(-1, 1) - image.float()).square().mean(dim=(1, 2, 3))
    return 10 * (4 / error.clamp_min(1e-10)).log10()
