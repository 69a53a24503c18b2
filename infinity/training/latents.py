"""Precomputed training examples of the transformer: tokenizer features and text features, on the
device.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from infinity.schedule import Grid
from infinity.text.base import TextFeatures
from infinity.tokenizer.autoencoder import BSQTokenizer
from infinity.tokenizer.quantizer import encode_residuals
from infinity.training.run import synchronize
from infinity.training.source import ImageSource

IMAGE_CHUNK = 64
TEXT_CHUNK = 512
SLOT_MULTIPLE = 8
"""Text slots are a multiple of this, as masked attention kernels like it."""


@runtime_checkable
class BatchTextEncoder(Protocol):
    """Encodes many captions in one padded pass."""

    def encode_batch(self, prompts: Sequence[str]) -> TextFeatures: ...


@dataclass(frozen=True)
class LatentCache:
    """Features of ``n`` images and their captions, half precision.

    Attributes:
        features: ``(n, d, h, w)`` tokenizer features before quantisation.
        text: ``(n, slots, width)`` text features, zero-padded.
        lengths: ``(n,)`` text rows of every caption.
    """

    features: Float[Tensor, "n d h w"]
    text: Float[Tensor, "n slots width"]
    lengths: Int64[Tensor, " n"]

    def __len__(self) -> int:
        return self.features.shape[0]

    def batch(
        self, rows: Int64[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b d h w"], Float[Tensor, "b slots width"], Bool[Tensor, "b slots"]]:
        """fp32 features, half-precision text and the mask of its valid slots."""
        slots = torch.arange(self.text.shape[1], device=self.text.device)
        valid = slots < self.lengths[rows][:, None]
        return self.features[rows].float(), self.text[rows], valid


@dataclass(frozen=True)
class CacheTimes:
    """Seconds spent on images (composing and encoding) and on text, and the share of bits on which
    half-precision and fp32 encoding agree.
    """

    image_s: float
    text_s: float
    bit_agreement: float


@torch.no_grad()
def build_cache(
    source: ImageSource,
    tokenizer: BSQTokenizer,
    text_encoder: BatchTextEncoder,
    images: int,
    grids: tuple[Grid, ...],
    device: torch.device,
) -> tuple[LatentCache, CacheTimes]:
    """Encodes ``images`` composed images and their captions.

    The tokenizer runs in bf16 on CUDA, as it was trained, and in fp32 elsewhere.

    Args:
        source: of images and captions.
        tokenizer: frozen.
        text_encoder: frozen.
        images: how many.
        grids: latent grids, to report how many bits the precision changes.
        device: where everything is kept.
    """
    started = time.monotonic()
    reduced = device.type == "cuda"
    chunk = min(IMAGE_CHUNK, images)
    shape = (images, tokenizer.config.codebook_dim, *grids[-1])
    features = torch.empty(shape, dtype=torch.float16, device=device)
    captions: list[str] = []
    agreement = 1.0
    while (done := len(captions)) < images:
        image, words = source.batch(chunk)
        image = image.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=reduced):
            encoded = tokenizer.features(image)
        if not done and reduced:
            agreement = _bit_agreement(tokenizer, image, encoded, grids)
        taken = min(chunk, images - done)
        features[done : done + taken] = encoded[:taken]
        captions += words[:taken]
    synchronize(device)
    encoded_at = time.monotonic()
    text, lengths = encode_captions(captions, text_encoder, device)
    synchronize(device)
    times = CacheTimes(encoded_at - started, time.monotonic() - encoded_at, agreement)
    return LatentCache(features, text, lengths), times


def _bit_agreement(
    tokenizer: BSQTokenizer, image: Tensor, encoded: Tensor, grids: tuple[Grid, ...]
) -> float:
    with torch.compiler.set_stance("force_eager"):
        exact = tokenizer.encode_features(image)
    (_, one), (_, other) = (
        encode_residuals(f.contiguous(), grids, tokenizer.gains) for f in (exact, encoded)
    )
    return float(
        torch.cat([(a == b).flatten() for a, b in zip(one, other, strict=True)]).float().mean()
    )


@torch.no_grad()
def encode_captions(
    captions: Sequence[str], text_encoder: BatchTextEncoder, device: torch.device
) -> tuple[Float[Tensor, "n slots width"], Int64[Tensor, " n"]]:
    """Padded half-precision features of captions, and their lengths.

    Captions are encoded in order of length, so that little is padded, and each distinct one once.
    """
    distinct = sorted(set(captions), key=lambda caption: (len(caption), caption))
    parts: list[Tensor] = []
    counts: list[int] = []
    for start in range(0, len(distinct), TEXT_CHUNK):
        encoded = text_encoder.encode_batch(distinct[start : start + TEXT_CHUNK])
        parts.append(encoded.rows.half().to(device))
        counts += encoded.lengths
    slots = -(-max(counts) // SLOT_MULTIPLE) * SLOT_MULTIPLE
    lengths = torch.tensor(counts, device=device)
    rows = torch.cat(parts)
    table = rows.new_zeros(len(distinct), slots, rows.shape[1])
    table[torch.arange(slots, device=device) < lengths[:, None]] = rows
    position = {caption: i for i, caption in enumerate(distinct)}
    order = torch.tensor([position[caption] for caption in captions], device=device)
    return table[order], lengths[order]
