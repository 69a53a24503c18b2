"""The decoder in horizontal bands: the same picture with less memory.

A normalisation needs its statistics over the whole map, but nothing between it and the next
convolution needs a whole map in fp32. So each pair of both runs band by band with one row of
overlap, and only the maps themselves stay, in the compute dtype.

Maps that fit into one band are computed by the decoder's own modules, so small pictures are the
same to the last bit. In larger ones every value comes from the formula of
:class:`infinity.tokenizer.autoencoder.Decoder`, and equality is up to rounding: statistics are
summed in another order, and convolution kernels may differ with the height of their input.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from infinity.tokenizer.autoencoder import Conv, Decoder, Norm, ResBlock, Upsample

BAND_VALUES = 1 << 24
"""Values of one band of the widest input: 64 MiB in fp32. Smaller maps are not divided."""

Pointwise = Callable[[Tensor], Tensor]


class BandedDecoder(nn.Module):
    """A decoder's modules, run in bands.

    Args:
        decoder: keeps its parameters and names; only its way of running is replaced.
        band_values: see :data:`BAND_VALUES`.
    """

    def __init__(self, decoder: Decoder, band_values: int = BAND_VALUES) -> None:
        super().__init__()
        self.conv_in, self.mid, self.up = decoder.conv_in, decoder.mid, decoder.up
        self.norm_out, self.conv_out = decoder.norm_out, decoder.conv_out
        self.band_values = band_values

    def forward(self, z: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 3 H W"]:
        x = self.conv_in(z)
        x = self._block(self.mid.block_2, self._block(self.mid.block_1, x))
        for level in reversed(self.up):
            for block in level.block:
                x = self._block(block, x)
            if hasattr(level, "upsample"):
                x = self._upsample(level.upsample, x)
        if self._is_small(x):
            return self.conv_out(F.silu(self.norm_out(x)))
        return self._convolve(self.conv_out, x, self._activated(self.norm_out, x))

    def _is_small(self, x: Tensor) -> bool:
        """Whether one band holds all of a map; it is then computed as the decoder itself does."""
        return self._rows(x) >= x.shape[2]

    def _block(self, block: ResBlock, x: Tensor) -> Tensor:
        if self._is_small(x):
            return block(x)
        y = self._convolve(block.conv1, x, self._activated(block.norm1, x))
        y = self._convolve(block.conv2, y, self._activated(block.norm2, y))
        if block.widens:
            x = self._convolve(block.nin_shortcut, x, _same)
        return y.add_(x)

    def _upsample(self, upsample: Upsample, x: Tensor) -> Tensor:
        if self._is_small(x):
            return upsample(x)
        return self._convolve(upsample.conv, x, _same, factor=2)

    def _activated(self, norm: Norm, x: Tensor) -> Pointwise:
        """Normalisation with the statistics of all of ``x``, then SiLU."""
        inner = norm.norm
        mean, scale = self._statistics(x, inner.num_groups, inner.eps)
        weight = inner.weight.float().view(1, -1, 1, 1)
        bias = inner.bias.float().view(1, -1, 1, 1)
        gain = scale * weight
        offset = bias - mean * gain
        return lambda band: F.silu(torch.addcmul(offset, band.float(), gain))

    def _statistics(self, x: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
        """Mean and 1 / deviation of every channel's group, ``(b, C, 1, 1)``, in fp32."""
        b, channels, height, width = x.shape
        count = channels // groups * height * width
        grouped = x.view(b, groups, channels // groups, height, width)
        bands = _bands(height, self._rows(x))
        mean = sum(grouped[..., s:e, :].float().sum((2, 3, 4)) for s, e in bands) / count
        assert isinstance(mean, Tensor)
        centre = mean[:, :, None, None, None]
        square = sum(
            (grouped[..., s:e, :].float() - centre).square_().sum((2, 3, 4)) for s, e in bands
        )
        assert isinstance(square, Tensor)
        scale = (square / count + eps).rsqrt()
        each = channels // groups
        return tuple(v.repeat_interleave(each, 1)[..., None, None] for v in (mean, scale))  # type: ignore[return-value]

    def _convolve(self, conv: Conv, x: Tensor, before: Pointwise, factor: int = 1) -> Tensor:
        """``conv(before(x))`` band by band; ``factor`` 2 doubles the rows in between."""
        inner = conv.conv
        reach = inner.padding[0] if isinstance(inner.padding, tuple) else 0
        height = x.shape[2] * factor
        out: Tensor | None = None
        for start, stop in _bands(height, self._rows(x) * factor):
            top, bottom = max(start - reach, 0), min(stop + reach, height)
            band = before(x[:, :, top // factor : -(-bottom // factor)])
            if factor != 1:
                band = F.interpolate(band, scale_factor=float(factor), mode="nearest")
                first = top - top // factor * factor
                band = band[:, :, first : first + bottom - top]
            missing = (reach - (start - top), reach - (bottom - stop))
            if any(missing):
                band = F.pad(band, (0, 0, *missing))
            band = F.conv2d(band, inner.weight, inner.bias, padding=(0, reach))
            if out is None:
                if (start, stop) == (0, height):
                    return band
                out = band.new_empty(*band.shape[:2], height, band.shape[3])
            out[:, :, start:stop] = band
        assert out is not None
        return out

    def _rows(self, x: Tensor) -> int:
        """Rows of ``x`` in one band."""
        return max(8, self.band_values // (x.shape[0] * x.shape[1] * x.shape[3]))


def _same(x: Tensor) -> Tensor:
    return x


def _bands(height: int, rows: int) -> list[tuple[int, int]]:
    return [(start, min(start + rows, height)) for start in range(0, height, rows)]
