"""One training step of the tokenizer as a module: images in, losses and statistics out."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from infinity.schedule import Grid
from infinity.tokenizer.autoencoder import BSQTokenizer
from infinity.tokenizer.quantizer import (
    area_down,
    codes_from_bits,
    encode_residuals,
    resize,
    sum_codes,
    to_bits,
    unit_rms,
)
from infinity.training.caption_net import CaptionNet, perceptual_distance
from infinity.training.config import QuantizerArm
from infinity.training.quantizer_loss import quantize_scales
from infinity.training.reconstruction_loss import LossWeights, reconstruction_loss

GAIN_RATE = 0.02
"""Share of a step's mean residual magnitude that enters a gain's running mean."""


@dataclass(frozen=True)
class StepOutput:
    """What one step gave, on the device; no host sync.

    Attributes:
        loss: weighted sum of the three below, with its gradient.
        reconstruction: see :func:`infinity.training.reconstruction_loss.reconstruction_loss`.
        quantizer: commitment, and for ``straight_through: scales`` entropy.
        perceptual: distance of the features; 0 without a perceptual network.
        squared_error: ``(b,)`` mean over pixels and channels, for PSNR.
    """

    loss: Tensor
    reconstruction: Tensor
    quantizer: Tensor
    perceptual: Tensor
    squared_error: Tensor


class TokenizerObjective(nn.Module):
    """Reconstruction plus quantiser loss of a :class:`BSQTokenizer` under one quantiser arm.

    The gains live here, so that all arms share one (compiled) encoder and decoder.

    Args:
        tokenizer: its encoder and decoder are trained; its own gains are ignored.
        grids: latent grid per scale.
        weights: of the reconstruction loss.
        arm: how to quantise; :meth:`select` changes it.
        pixel_weights: ``(H, W)``, or None for equal weights.
        perceptual: weight of the distance in a frozen network's features, and the network.
    """

    gains: Tensor
    pixel_weights: Tensor | None

    def __init__(
        self,
        tokenizer: BSQTokenizer,
        grids: tuple[Grid, ...],
        weights: LossWeights,
        arm: QuantizerArm,
        pixel_weights: Float[Tensor, "H W"] | None = None,
        perceptual: tuple[float, CaptionNet] | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = tokenizer.encoder, tokenizer.decoder
        self.grids, self.weights, self.arm = grids, weights, arm
        codebook_dim = tokenizer.config.codebook_dim
        self.register_buffer("gains", torch.full((len(grids),), codebook_dim**-0.5))
        self.register_buffer("pixel_weights", pixel_weights, persistent=False)
        self._codebook_dim = codebook_dim
        # In a tuple, so that the network's weights are no part of this module's.
        self._perceptual = perceptual

    def select(self, arm: QuantizerArm) -> None:
        """Changes the arm and forgets the gains."""
        self.arm = arm
        self.gains.fill_(self._codebook_dim**-0.5)

    def features(self, image: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b d h w"]:
        f = self.encoder(image).float()
        return unit_rms(f) if self.arm.gains else f

    def forward(
        self,
        image: Float[Tensor, "b 3 H W"],
        shown: Bool[Tensor, "b kept"],
        kept: tuple[bool, ...],
        features: Float[Tensor, "b d h w"] | None = None,
    ) -> StepOutput:
        """Losses of a batch.

        Args:
            image: in [-1, 1].
            shown: which of the kept scales each image is decoded from.
            kept: scales that take part in this step.
            features: of the images, computed beforehand; encoder and gains then stay as they are.
        """
        f = self.features(image) if features is None else features
        with torch.autocast(image.device.type, enabled=False):
            if features is not None:
                z = self._sum_shown(self._codes(f, kept, frozen=True), shown)
                quantizer = z.new_zeros(())
            elif self.arm.straight_through == "scales":
                codes, losses = quantize_scales(f, self.grids, kept)
                quantizer = torch.stack(losses).mean()
                z = self._sum_shown(codes, shown)
            else:
                codes = self._codes(f.detach(), kept)
                quantizer = (f - torch.stack(codes).sum(dim=0)).square().mean()
                z = self._sum_shown(codes, shown) + f - f.detach()
        decoded = self.decoder(z.contiguous(memory_format=torch.channels_last))
        distance = quantizer.new_zeros(())
        if self._perceptual is not None:
            distance = perceptual_distance(self._perceptual[1], decoded, image)
        with torch.autocast(image.device.type, enabled=False):
            reconstruction = reconstruction_loss(decoded, image, self.weights, self.pixel_weights)
            loss = reconstruction + self.arm.loss_weight * quantizer
            if self._perceptual is not None:
                loss = loss + self._perceptual[0] * distance
            error = (decoded.detach().float() - image).square().mean(dim=(1, 2, 3))
        return StepOutput(
            loss, reconstruction.detach(), quantizer.detach(), distance.detach(), error
        )

    @staticmethod
    def _sum_shown(codes: list[Tensor], shown: Bool[Tensor, "b kept"]) -> Tensor:
        weights = shown.float()
        return sum(e * weights[:, k, None, None, None] for k, e in enumerate(codes))  # type: ignore[return-value]

    @torch.no_grad()
    def _codes(self, f: Tensor, kept: tuple[bool, ...], frozen: bool = False) -> list[Tensor]:
        """Upsampled codes of the kept scales; moves the gains towards the residuals met, unless
        they are frozen.
        """
        codes, z = [], torch.zeros_like(f)
        for k, grid in enumerate(self.grids):
            if not kept[k]:
                continue
            residual = area_down(f - z, grid)
            if self.arm.gains and self.training and not frozen:
                self.gains[k].lerp_(residual.abs().mean(), GAIN_RATE)
            gain = self.gains[k].clone() if self.arm.gains else None
            codes.append(resize(codes_from_bits(to_bits(residual), gain), self.grids[-1]))
            z = z + codes[-1]
        return codes

    @torch.no_grad()
    def round_trip(
        self, image: Float[Tensor, "b 3 H W"], scales: int | None = None
    ) -> tuple[Float[Tensor, "b 3 H W"], Float[Tensor, " k"]]:
        """Image decoded from the first ``scales`` scales (all by default), and the mean of its bits
        per scale.
        """
        gains = self.gains if self.arm.gains else None
        _, bits = encode_residuals(self.features(image), self.grids, gains)
        z = sum_codes(bits[:scales], self.grids[-1], gains)
        means = torch.stack([scale_bits.float().mean() for scale_bits in bits])
        return self.decoder(z).float().clamp(-1, 1), means
