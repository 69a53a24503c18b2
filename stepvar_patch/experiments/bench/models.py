"""The pipelines that arms are drawn with, their weights loaded once, and what they weigh."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from infinity.errors import UserError
from infinity.loading import resolve_device, resolve_dtype
from stepvar_patch.experiments.bench.random_model import random_pipeline
from stepvar_patch.experiments.bench.schema import RANDOM, Arm, BenchConfig


class Models:
    """Pipelines by what arms need of them; those of one precision share their weights.

    Args:
        config: of the benchmark.
        load: reads a model directory.
    """

    def __init__(self, config: BenchConfig, load: Callable[..., Any]) -> None:
        self._config, self._load = config, load
        self._opened: dict[torch.dtype, Any] = {}
        self._pipelines: dict[tuple[torch.dtype, str, bool], Any] = {}

    def pipeline(self, arm: Arm) -> Any:
        """The pipeline of an arm; its weights are loaded at the first call that needs them.

        Raises:
            UserError: weights that cannot be had, or no such device.
        """
        dtype = resolve_dtype(arm.dtype, resolve_device(self._config.device))
        engine, fp8 = arm.engine or "auto", bool(arm.fp8)
        key = (dtype, engine, fp8)
        if key not in self._pipelines:
            if dtype not in self._opened:
                self._opened[dtype] = self._open(arm.dtype)
            self._pipelines[key] = replace(self._opened[dtype], engine=engine, fp8=fp8)
        return self._pipelines[key]

    @property
    def opened(self) -> list[Any]:
        """A pipeline for each set of weights that has been loaded."""
        return list(self._opened.values())

    def weight_bytes(self) -> int:
        """Of all loaded weights together, text encoders included where they are modules."""
        return sum(map(weight_bytes, self._opened.values()))

    def _open(self, dtype: str | None) -> Any:
        config = self._config
        if config.preset is not None:
            return random_pipeline(
                config.preset,
                device=config.device,
                dtype=dtype,
                text_tokens=config.text_tokens,
                text_encoder=config.text_encoder == RANDOM,
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
