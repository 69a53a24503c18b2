"""How much device memory a generation call will need, told from shapes alone.

The allocator's peak, as ``torch.cuda.max_memory_allocated`` reports it. A GPU's context, about half
a GiB, and what the allocator keeps in reserve come on top (:data:`OVERHEAD_BYTES`,
:data:`RESERVE`).
"""

import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import nn

from infinity.config import ModelConfig, TextEncoderConfig
from infinity.picture import picture_schedule
from infinity.schedule import ScaleSchedule
from infinity.tokenizer.autoencoder import BSQTokenizer, decoded_together
from infinity.tokenizer.banded import BAND_VALUES
from infinity.transformer.model import InfinityTransformer

Memory = Literal["auto", "low"]

OVERHEAD_BYTES = 600 << 20
RESERVE = 1.06

_WORK_BYTES = {torch.bfloat16: 45, torch.float32: 66}
"""Per token and channel of the largest scale: residual stream and input in fp32, the normalised
copy, queries and keys on their way through normalisation and rotation. Counted by following every
tensor of a call (``tests/unit/test_memory.py`` holds it to that)."""

_TEXT_WORK_BYTES = 64 << 20
"""A text encoder's activations for one prompt, generously."""


@dataclass(frozen=True, kw_only=True)
class MemoryNeed:
    """Bytes on the device, part by part.

    Attributes:
        transformer: weights while drawing.
        loading: weights of the transformer when they have just been loaded, before quantising.
        tokenizer: weights.
        text_encoder: weights; on the device only while it encodes with ``low``.
        cache: keys and values of all layers.
        work: the rest of the largest scale.
        decode: the decoder's maps, as many pictures at once as a GPU decodes.
        decode_banded: likewise, one picture in bands.
        recorded: recorded calls keep the cache while decoding (``auto`` on a GPU).
    """

    transformer: int
    loading: int
    tokenizer: int
    text_encoder: int
    cache: int
    work: int
    decode: int
    decode_banded: int
    recorded: bool = False

    def peak(self, memory: Memory) -> int:
        """Most bytes at once."""
        scales = self.cache + self.work
        if memory == "low":
            drawing = self.transformer + max(scales, self.decode_banded)
            encoding = self.text_encoder + _TEXT_WORK_BYTES
            return max(encoding, self.tokenizer + max(self.loading, drawing))
        kept = self.cache if self.recorded else 0
        drawing = self.transformer + max(scales, kept + self.decode)
        return self.tokenizer + self.text_encoder + max(self.loading, drawing)

    def fits(self, memory: Memory, total_bytes: int) -> bool:
        """Whether a device with ``total_bytes`` can do it."""
        return RESERVE * self.peak(memory) + OVERHEAD_BYTES <= total_bytes

    def to_json(self) -> dict[str, int | bool]:
        """Parts and peaks as JSON values."""
        return {**asdict(self), "peak_auto": self.peak("auto"), "peak_low": self.peak("low")}


def memory_need(
    config: ModelConfig,
    schedule: ScaleSchedule,
    *,
    images: int,
    guided: bool,
    dtype: torch.dtype,
    cached_tokens: tuple[int, ...] | None = None,
    quantized: bool = False,
    recorded: bool = False,
) -> MemoryNeed:
    """What a call needs on the device.

    Args:
        config: of the model.
        schedule: of the pictures.
        images: drawn at once.
        guided: whether there are unconditional rows.
        dtype: compute dtype.
        cached_tokens: a pruning policy's bound per scale; None is every token.
        quantized: whether the block matrices are kept in int8 or fp8.
        recorded: whether calls with ``auto`` are recorded as CUDA graphs.
    """
    model = config.transformer
    tokens = schedule.tokens_per_scale
    cached = sum((cached_tokens or tokens)[:-1])
    rows = images * (2 if guided else 1)
    element = dtype.itemsize
    cells = math.prod(schedule.latent_grids(model.patchify)[-1])
    together = min(images, decoded_together(cells * config.tokenizer.patch_size**2))
    matrices = (3 + 1 + 4 + 2 * model.ffn_width // model.width) * model.width**2 * model.depth
    weights = _transformer_bytes(config, dtype)
    saved = matrices * (element - 1)
    return MemoryNeed(
        transformer=weights - (saved if quantized else 0),
        loading=weights,
        tokenizer=_tokenizer_bytes(config),
        text_encoder=_encoder_bytes(config.text_encoder, dtype),
        cache=2 * rows * cached * model.width * element * model.depth,
        work=_WORK_BYTES[dtype] * rows * max(tokens) * model.width,
        decode=together * _decode_bytes(config, cells, element, banded=False),
        decode_banded=_decode_bytes(config, cells, element, banded=True),
        recorded=recorded,
    )


def batch_that_fits(config: ModelConfig, dtype: torch.dtype, total_bytes: int) -> int:
    """How many square pictures of a model's own size to draw at once where nobody says: at most 8.

    Args:
        config: of the model.
        dtype: compute dtype.
        total_bytes: of the device.
    """
    schedule = picture_schedule(config)
    for images in (8, 4, 2):
        need = memory_need(config, schedule, images=images, guided=True, dtype=dtype, recorded=True)
        if need.fits("auto", total_bytes):
            return images
    return 1


def _decode_bytes(config: ModelConfig, cells: int, element: int, *, banded: bool) -> int:
    """The decoder's largest step: a normalised map in fp32 beside its input and its output."""
    shape = config.tokenizer
    widths = [shape.channels * m for m in shape.channel_multipliers]
    worst = 0
    for level in range(len(widths)):
        pixels = cells * 4 ** (shape.downsamplings - level if level <= shape.downsamplings else 0)
        wide, narrow = widths[min(level + 1, len(widths) - 1)], widths[level]
        maps = pixels * (wide + 2 * narrow) * element
        if banded:
            work = 4 * 4 * min(BAND_VALUES, pixels * wide)
        else:
            work = max(pixels * wide * 2 * 4 - pixels * narrow * 2 * element, 0)
        worst = max(worst, maps + work)
    return worst


@lru_cache(maxsize=8)
def _transformer_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    with torch.device("meta"):
        return _bytes(InfinityTransformer(config.transformer).set_compute_dtype(dtype))


@lru_cache(maxsize=8)
def _tokenizer_bytes(config: ModelConfig) -> int:
    with torch.device("meta"):
        return _bytes(BSQTokenizer(config.tokenizer))


@lru_cache(maxsize=8)
def _encoder_bytes(config: TextEncoderConfig, dtype: torch.dtype) -> int:
    """Of flan-T5-XL's encoder, or of MiniLM, which computes in fp32."""
    if config.kind == "minilm":
        return 22_600_000 * 4
    from transformers import T5Config, T5EncoderModel

    shape = T5Config(
        d_model=config.width,
        d_ff=5120,
        d_kv=64,
        num_heads=32,
        num_layers=24,
        vocab_size=32_128,
        feed_forward_proj="gated-gelu",
    )
    with torch.device("meta"):
        return sum(p.numel() for p in T5EncoderModel(shape).parameters()) * dtype.itemsize


def _bytes(module: nn.Module) -> int:
    return sum(value.nbytes for value in module.state_dict().values())
