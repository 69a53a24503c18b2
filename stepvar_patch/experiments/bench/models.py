"""The pipelines that arms are drawn with: loaded ones, or true shapes with random weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from infinity.config import PRESETS
from infinity.errors import UserError
from infinity.loading import resolve_device, resolve_dtype
from infinity.pipeline import InfinityPipeline
from infinity.text import TextFeatures
from infinity.tokenizer.autoencoder import BSQTokenizer
from infinity.transformer.model import InfinityTransformer
from stepvar_patch.experiments.bench.schema import RANDOM, Arm, BenchConfig

_DEVIATION = 0.02
"""Of the random weights: small enough that no activation overflows in any preset."""


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
    preset: str, *, device: str | None, dtype: str | None, text_tokens: int
) -> InfinityPipeline:
    """A pipeline with the shapes of ``preset`` and random weights, built on the device.

    Its time depends on the shapes alone; its pictures mean nothing.

    Args:
        preset: name in ``infinity.config.PRESETS``.
        device: ``None`` takes a GPU if there is one.
        dtype: ``None`` is bfloat16 on a GPU and float32 on the CPU.
        text_tokens: rows of the random features of every prompt.

    Raises:
        UserError: no such device.
    """
    config, where = PRESETS[preset], resolve_device(device)
    precision = resolve_dtype(dtype, where)
    with torch.device("meta"):
        transformer = InfinityTransformer(config.transformer)
        tokenizer = BSQTokenizer(config.tokenizer)
    transformer.set_compute_dtype(precision)
    generator = torch.Generator(where).manual_seed(0)
    for module in (transformer, tokenizer):
        module.to_empty(device=where).eval().requires_grad_(False)
        for parameter in module.parameters():
            parameter.normal_(std=_DEVIATION, generator=generator)
        for buffer in module.buffers():
            buffer.zero_()
    text = config.text_encoder
    return InfinityPipeline(
        config=config,
        transformer=transformer,
        tokenizer=tokenizer,
        text_encoder=RandomText(text.width, text.max_tokens, text_tokens, where),
        digest=RANDOM,
        device=where,
        dtype=precision,
    )


class Models:
    """Pipelines by what arms need of them, each loaded once.

    Args:
        config: of the benchmark.
        load: reads a model directory.
    """

    def __init__(self, config: BenchConfig, load: Callable[..., Any]) -> None:
        self._config, self._load = config, load
        self._loaded: dict[str | None, Any] = {}

    def pipeline(self, arm: Arm) -> Any:
        """The pipeline of an arm, loaded at the first call.

        Raises:
            UserError: weights that cannot be had, or no such device.
        """
        if arm.dtype not in self._loaded:
            self._loaded[arm.dtype] = self._open(arm.dtype)
        return self._loaded[arm.dtype]

    @property
    def loaded(self) -> list[Any]:
        """The pipelines that have been loaded."""
        return list(self._loaded.values())

    def weight_bytes(self) -> int:
        """Of all loaded pipelines together, text encoders included where they are modules."""
        return sum(map(weight_bytes, self._loaded.values()))

    def _open(self, dtype: str | None) -> Any:
        config = self._config
        if config.preset is not None:
            return random_pipeline(
                config.preset, device=config.device, dtype=dtype, text_tokens=config.text_tokens
            )
        return self._load(
            config.weights,
            tokenizer=config.tokenizer,
            text_encoder=config.text_encoder,
            device=config.device,
            dtype=dtype,
        )


def weight_bytes(pipeline: Any) -> int:
    """Parameters and buffers of a pipeline's modules."""
    modules = [pipeline.transformer, pipeline.tokenizer]
    modules += [m for m in vars(pipeline.text_encoder).values() if isinstance(m, torch.nn.Module)]
    return sum(
        tensor.nbytes for module in modules for tensor in (*module.parameters(), *module.buffers())
    )


def check_weights(config: BenchConfig) -> None:
    """Refuses weights that are not there, before anything is timed.

    Raises:
        UserError: no model directory, or an official file without its tokenizer.
    """
    if config.preset is None and not Path(config.weights).exists():
        raise UserError(
            f"weights: {config.weights} does not exist; allowed: a model directory, an official "
            "transformer with its tokenizer=FILE, or random with preset=NAME"
        )
