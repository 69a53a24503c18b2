"""The decoder in bf16 channels-last with the kernels of ``infinity/ops/fused/group_norm.py``.

Convolutions run without their bias, which the next kernel adds; statistics of a group norm are
taken while the residual sum is written. Nearest upsampling and its convolution are one convolution
in sub-pixel form, 2.25 times fewer operations. ``autoencoder.Decoder`` defines what is computed.

Shape legend: B images, H × W pixels of a level, C channels.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from infinity.ops.fused import group_norm
from infinity.tokenizer.autoencoder import NORM_EPS, Conv, Decoder, Norm, ResBlock


@dataclass(frozen=True)
class _Map:
    """``x (B, C, H, W)``, channels last, standing for ``x + bias``; moments are those of ``x``."""

    x: Tensor
    bias: Tensor | None
    moments: group_norm.Moments

    @staticmethod
    def of(x: Tensor, bias: Tensor | None) -> "_Map":
        return _Map(x, bias, group_norm.add(_flat(x), None, None)[1])


def _flat(x: Tensor) -> Tensor:
    """``(B, C, H, W)`` channels-last as ``(B, P, C)``, a view."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _unflat(x: Tensor, size: tuple[int, int]) -> Tensor:
    return x.unflatten(1, size).permute(0, 3, 1, 2)


class _Convolution:
    def __init__(self, conv: Conv, dtype: torch.dtype) -> None:
        inner = conv.conv
        self.weight = inner.weight.detach().to(dtype, memory_format=torch.channels_last)
        assert inner.bias is not None
        self.bias = inner.bias.detach().float()
        self.padding = inner.padding

    def __call__(self, x: Tensor) -> Tensor:
        """The convolution without its bias."""
        return F.conv2d(x, self.weight, padding=self.padding).contiguous(
            memory_format=torch.channels_last
        )


class _Upsampling(_Convolution):
    """The 3×3 convolution of a map whose pixels are repeated into 2×2.

    Its nine taps meet four pixels of the small map, so each output pixel of a 2×2 has 2×2 weights.
    One convolution, padded by one, computes all four: see ``group_norm.reference_interleave``.
    """

    def __init__(self, conv: Conv, dtype: torch.dtype) -> None:
        super().__init__(conv, dtype)
        weight = conv.conv.weight.detach().float()
        for axis in (3, 2):
            a, b, c = weight.unbind(axis)
            weight = torch.cat([torch.stack(taps, axis) for taps in ((a, b + c), (a + b, c))])
        self.weight = weight.to(dtype, memory_format=torch.channels_last)

    def upsampled(self, x: Tensor) -> _Map:
        big, moments = group_norm.interleave(self(x).permute(0, 2, 3, 1))
        h, w = x.shape[-2:]
        return _Map(_unflat(big, (2 * h, 2 * w)), self.bias, moments)


class _NormSilu:
    def __init__(self, norm: Norm) -> None:
        inner = norm.norm
        self.weight, self.shift = inner.weight.detach().float(), inner.bias.detach().float()
        self.groups = inner.num_groups

    def __call__(self, x: _Map) -> Tensor:
        normed = group_norm.norm_silu(
            _flat(x.x), x.moments, x.bias, self.weight, self.shift, self.groups, NORM_EPS
        )
        return _unflat(normed, tuple(x.x.shape[-2:]))


class _Residual:
    def __init__(self, block: ResBlock, dtype: torch.dtype) -> None:
        self.norm1, self.norm2 = _NormSilu(block.norm1), _NormSilu(block.norm2)
        self.conv1, self.conv2 = _Convolution(block.conv1, dtype), _Convolution(block.conv2, dtype)
        self.shortcut = _Convolution(block.nin_shortcut, dtype) if block.widens else None

    def __call__(self, x: _Map) -> tuple[Tensor, Tensor, Tensor]:
        """Shortcut, change and bias: the block's output is their sum."""
        inner = self.conv1(self.norm1(x))
        change = self.conv2(self.norm2(_Map.of(inner, self.conv1.bias)))
        bias, kept = self.conv2.bias, x.x
        waiting = x.bias
        if self.shortcut is not None:
            kept = self.shortcut(kept)
            bias = bias + self.shortcut.bias
            if waiting is not None:
                waiting = self.shortcut.weight.flatten(1).float() @ waiting
        return kept, change, bias if waiting is None else bias + waiting


class FusedDecoder:
    """Latent to image in reduced precision, from a decoder's weights, which are copied.

    Args:
        decoder: the decoder.
        dtype: of weights and activations.
    """

    def __init__(self, decoder: Decoder, dtype: torch.dtype = torch.bfloat16) -> None:
        self.dtype = dtype
        self.conv_in = _Convolution(decoder.conv_in, dtype)
        middle = [decoder.mid.block_1, decoder.mid.block_2]
        self.stages: list[tuple[list[_Residual], _Upsampling | None]] = []
        pending = [_Residual(block, dtype) for block in middle]
        for level in reversed(decoder.up):
            pending += [_Residual(block, dtype) for block in level.block]
            if hasattr(level, "upsample"):
                self.stages.append((pending, _Upsampling(level.upsample.conv, dtype)))
                pending = []
        self.stages.append((pending, None))
        self.norm_out = _NormSilu(decoder.norm_out)
        self.conv_out = _Convolution(decoder.conv_out, dtype)

    @torch.inference_mode()
    def __call__(self, z: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 3 H W"]:
        """Image in [−1, 1], fp32."""
        latent = z.to(self.dtype, memory_format=torch.channels_last)
        x = _Map.of(self.conv_in(latent), self.conv_in.bias)
        for blocks, upsampling in self.stages:
            for block in blocks:
                x = self._summed(*block(x))
            if upsampling is not None:
                x = upsampling.upsampled(x.x)
        image = self.conv_out(self.norm_out(x))
        return (image.float() + self.conv_out.bias[:, None, None]).clamp(-1, 1).contiguous()

    def _summed(self, kept: Tensor, change: Tensor, bias: Tensor) -> _Map:
        total, moments = group_norm.add(_flat(kept), _flat(change), bias)
        return _Map(_unflat(total, tuple(kept.shape[-2:])), None, moments)
