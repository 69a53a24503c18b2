"""True shapes with random weights, built on the device: for times, not for pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from infinity.config import PRESETS, TextEncoderConfig
from infinity.errors import UserError
from infinity.loading import resolve_device, resolve_dtype
from infinity.pipeline import InfinityPipeline
from infinity.text import TextEncoder, TextFeatures
from infinity.text.t5 import T5Encoder
from infinity.tokenizer.autoencoder import BSQTokenizer
from infinity.transformer.model import InfinityTransformer
from stepvar_patch.experiments.bench.schema import RANDOM

_DEVIATION = 0.02
"""Of the random weights: small enough that no activation overflows in any preset."""


T5_XL: dict[str, Any] = {
    "vocab_size": 32128,
    "d_model": 2048,
    "d_kv": 64,
    "d_ff": 5120,
    "num_layers": 24,
    "num_heads": 32,
    "feed_forward_proj": "gated-gelu",
}
"""Fields of transformers' ``T5Config``. Source: published configuration of google/flan-t5-xl."""


@dataclass
class RandomText:
    """Random features in place of a text encoder; a prompt always has the same ones.

    Attributes:
        width: of a feature.
        max_tokens: most rows that a prompt may have.
        tokens: rows of every prompt.
        device: where they are.
    """

    width: int
    max_tokens: int
    tokens: int
    device: torch.device
    _known: dict[str, Float[Tensor, "tokens width"]] = field(default_factory=dict)

    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        """Features of ``prompts``."""
        return TextFeatures.stack([self._features(prompt) for prompt in prompts])

    def _features(self, prompt: str) -> Tensor:
        if prompt not in self._known:
            generator = torch.Generator().manual_seed(len(self._known))
            shape = (min(self.tokens, self.max_tokens), self.width)
            self._known[prompt] = torch.randn(shape, generator=generator).to(self.device)
        return self._known[prompt]


@torch.no_grad()
def random_pipeline(
    preset: str,
    *,
    device: str | None,
    dtype: str | None,
    text_tokens: int,
    text_encoder: bool = False,
) -> InfinityPipeline:
    """A pipeline with the shapes of ``preset`` and random weights, built on the device.

    Its time depends on the shapes alone; its pictures mean nothing.

    Args:
        preset: name in ``infinity.config.PRESETS``.
        device: ``None`` takes a GPU if there is one.
        dtype: ``None`` is bfloat16 on a GPU and float32 on the CPU.
        text_tokens: rows of every prompt.
        text_encoder: run flan-T5-XL's shapes on random token numbers, instead of taking random
            features.

    Raises:
        UserError: no such device, or a preset with another text encoder than T5-XL.
    """
    config, where = PRESETS[preset], resolve_device(device)
    precision = resolve_dtype(dtype, where)
    with torch.device("meta"):
        transformer = InfinityTransformer(config.transformer)
        tokenizer = BSQTokenizer(config.tokenizer)
    transformer.set_compute_dtype(precision)
    for module in (transformer, tokenizer):
        _fill(module, where)
    text = config.text_encoder
    encoder: TextEncoder = RandomText(text.width, text.max_tokens, text_tokens, where)
    if text_encoder:
        encoder = random_t5(text, text_tokens, where, precision)
    return InfinityPipeline(
        config=config,
        transformer=transformer,
        tokenizer=tokenizer,
        text_encoder=encoder,
        digest=RANDOM,
        device=where,
        dtype=precision,
    )


def random_t5(
    text: TextEncoderConfig, tokens: int, device: torch.device, dtype: torch.dtype
) -> T5Encoder:
    """An encoder of flan-T5-XL's shape that sees ``tokens`` random tokens whatever the prompt."""
    if text.kind != "t5":
        raise UserError("text_encoder=random stands for flan-T5-XL, which this preset does not use")
    from transformers import T5Config, T5EncoderModel

    shape = T5Config(**T5_XL)
    with torch.device("meta"):
        model: nn.Module = T5EncoderModel(shape)
    model.to(dtype)
    _fill(model, device)
    drawn = torch.randint(
        T5_XL["vocab_size"], (tokens,), generator=torch.Generator().manual_seed(0)
    )
    ids = drawn.tolist()

    def tokenize(prompt: str, **how: Any) -> SimpleNamespace:
        return SimpleNamespace(input_ids=ids)

    return T5Encoder(model, tokenize, max_tokens=text.max_tokens)


def _fill(module: nn.Module, device: torch.device) -> None:
    """Gives a module of the meta device memory and random parameters."""
    generator = torch.Generator(device).manual_seed(0)
    module.to_empty(device=device).eval().requires_grad_(False)
    for parameter in module.parameters():
        parameter.normal_(std=_DEVIATION, generator=generator)
    for buffer in module.buffers():
        buffer.zero_()
