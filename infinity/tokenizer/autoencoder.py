"""The convolutional autoencoder of the BSQ tokenizer. Module names are the released checkpoints'
wire format.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from infinity.config import TokenizerConfig
from infinity.schedule import Grid
from infinity.tokenizer import quantizer

NORM_EPS = 1e-6
_PIXELS_AT_ONCE = 1024**2


def decoded_together(pixels: int) -> int:
    """How many pictures of so many pixels a GPU decodes in one call."""
    return max(1, _PIXELS_AT_ONCE // pixels)


class Conv(nn.Module):
    """A biased 2-D convolution under the extra ``conv`` segment that checkpoints have."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding)

    def forward(self, x: Float[Tensor, "b c_in h w"]) -> Float[Tensor, "b c_out h2 w2"]:
        return self.conv(x)


class Norm(nn.Module):
    """Group normalisation in 32 groups, or 24 when the width is no multiple of 32.

    Raises:
        ValueError: the width is divisible by neither.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        groups = 32 if channels % 32 == 0 else 24
        if channels % groups:
            raise ValueError(f"tokenizer width {channels} must be a multiple of 32 or 24")
        self.norm = nn.GroupNorm(groups, channels, eps=NORM_EPS)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return self.norm(x)


class ResBlock(nn.Module):
    """Two normalised 3×3 convolutions beside an identity (or 1×1) shortcut."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.norm1 = Norm(c_in)
        self.conv1 = Conv(c_in, c_out, 3, padding=1)
        self.norm2 = Norm(c_out)
        self.conv2 = Conv(c_out, c_out, 3, padding=1)
        if c_in != c_out:
            self.nin_shortcut = Conv(c_in, c_out, 1)
        self.widens = c_in != c_out

    def forward(self, x: Float[Tensor, "b c_in h w"]) -> Float[Tensor, "b c_out h w"]:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return (self.nin_shortcut(x) if self.widens else x) + y


class Downsample(nn.Module):
    """Halves height and width; the zero padding lies on the right and the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv(channels, channels, 3, stride=2)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles height and width by repeating pixels, then convolves."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class MiddleBlocks(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels)
        self.block_2 = ResBlock(channels, channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return self.block_2(self.block_1(x))


class Encoder(nn.Module):
    """Image to latent features, ``patch_size`` pixels a side per latent cell."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.channel_multipliers]
        self.conv_in = Conv(3, config.channels, 3, padding=1)
        self.down = nn.ModuleList()
        width = config.channels
        for i, level_width in enumerate(widths):
            level = nn.Module()
            level.block = nn.ModuleList(
                ResBlock(width if j == 0 else level_width, level_width)
                for j in range(config.res_blocks)
            )
            if i < config.downsamplings:
                level.downsample = Downsample(level_width)
            self.down.append(level)
            width = level_width
        self.mid = MiddleBlocks(width)
        self.norm_out = Norm(width)
        self.conv_out = Conv(width, config.codebook_dim, 3, padding=1)

    def forward(self, image: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b d h w"]:
        x = self.conv_in(image)
        for level in self.down:
            for block in level.block:
                x = block(x)
            if hasattr(level, "downsample"):
                x = level.downsample(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Latent to image, not squashed. ``up[0]`` is the full-resolution level and runs last."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.channel_multipliers]
        self.conv_in = Conv(config.codebook_dim, widths[-1], 3, padding=1)
        self.mid = MiddleBlocks(widths[-1])
        self.up = nn.ModuleList()
        for i, level_width in enumerate(widths):
            width = widths[min(i + 1, len(widths) - 1)]
            level = nn.Module()
            level.block = nn.ModuleList(
                ResBlock(width if j == 0 else level_width, level_width)
                for j in range(config.res_blocks + 1)
            )
            if 1 <= i <= config.downsamplings:
                level.upsample = Upsample(level_width)
            self.up.append(level)
        self.norm_out = Norm(widths[0])
        self.conv_out = Conv(widths[0], 3, 3, padding=1)

    def forward(self, z: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 3 H W"]:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            for block in level.block:
                x = block(x)
            if hasattr(level, "upsample"):
                x = level.upsample(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class ScaleGains(nn.Module):
    """Holds the code amplitudes of a tokenizer trained with one per scale."""

    scale_gains: Tensor

    def __init__(self, scales: int, codebook_dim: int) -> None:
        super().__init__()
        self.register_buffer("scale_gains", torch.full((scales,), codebook_dim**-0.5))


class BSQTokenizer(nn.Module):
    """Image ↔ bits of every scale. The latent of an image is ``(b, d, h, w)``; bits are ``(b, h_k,
    w_k, d)``.

    Source: spec bsq-vae §2 and §4; Infinity (arXiv 2412.04431).
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        if config.scale_gains:
            self.quantizer = ScaleGains(config.scale_gains, config.codebook_dim)

    @property
    def gains(self) -> Float[Tensor, " k"] | None:
        """Code amplitude per scale, or None for the family's unit-norm codes."""
        return self.quantizer.scale_gains if self.config.scale_gains else None

    def features(self, image: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b d h w"]:
        """Features in the ambient precision; with scale gains they have unit RMS over the
        channels.
        """
        f = self.encoder(image).float()
        return quantizer.unit_rms(f) if self.config.scale_gains else f

    def encode_features(self, image: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b d h w"]:
        """fp32 features of images in [-1, 1], whatever autocast region the caller is in."""
        with torch.autocast(image.device.type, enabled=False):
            return self.features(image.float())

    def encode(
        self, image: Float[Tensor, "b 3 H W"], grids: tuple[Grid, ...]
    ) -> tuple[Float[Tensor, "b d h w"], Float[Tensor, "b d h w"], list[Bool[Tensor, "b _ _ d"]]]:
        """Features, summed codes and the bits of every scale of images in [-1, 1].

        Args:
            image: RGB in [-1, 1].
            grids: latent grid ``(h, w)`` per scale, coarse to fine (with patchify: the doubled
                grids).
        """
        f = self.encode_features(image)
        z, bits = quantizer.encode_residuals(f, grids, self.gains)
        return f, z, bits

    def decode(self, z: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 3 H W"]:
        """Image in [-1, 1] of a latent."""
        return self.decoder(z).clamp(-1, 1)

    def decode_from_bits(
        self, bits: list[quantizer.Bits], grid: Grid
    ) -> tuple[Float[Tensor, "b d h w"], Float[Tensor, "b 3 H W"]]:
        """Summed codes and the image of the first ``len(bits)`` scales.

        Args:
            bits: bits per scale, coarse to fine; fewer than all scales give a coarser image.
            grid: the final latent grid.
        """
        z = quantizer.sum_codes(bits, grid, self.gains)
        return z, self.decode(z)
