"""From training checkpoints to a model directory that the pipeline loads."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from infinity.checkpoint import save_model_directory
from infinity.config import PRESETS, ModelConfig, TransformerConfig
from infinity.errors import UserError
from infinity.tokenizer.autoencoder import BSQTokenizer
from infinity.training.checkpoint import load_tensors, read_index
from infinity.training.tokenizer_checkpoint import load_tokenizer
from infinity.transformer.model import InfinityTransformer

Storage = Literal["int8", "float16"]

MAX_SHARD_BYTES = 15 * 2**20
"""Shards stay below the size that code hosts and the training machine's transfers accept."""


def export_model(
    transformer: Path,
    tokenizer: Path,
    text_encoder: Path,
    output: Path,
    *,
    storage: Storage = "int8",
    weights: Literal["ema", "raw"] = "ema",
    replace_existing: bool = False,
) -> ModelConfig:
    """Writes the trained model to ``output`` and returns its configuration.

    Args:
        transformer: checkpoint folder of a transformer run.
        tokenizer: checkpoint folder of the tokenizer that it was trained on.
        text_encoder: folder of the text encoder that it was trained on.
        output: model directory to write.
        storage: int8 keeps one scale per matrix row; float16 is twice the size.
        weights: averaged or raw weights of the transformer.
        replace_existing: replace a model directory that is already there.

    Raises:
        UserError: a folder holds no such checkpoint, the two do not fit, or ``output`` is in the
            way.
    """
    index = read_index(transformer)
    if "transformer" not in index:
        raise UserError(f"{transformer}: this checkpoint holds no transformer")
    autoencoder = load_tokenizer(tokenizer)
    preset = PRESETS["embedded"]
    try:
        config = replace(
            preset,
            transformer=TransformerConfig(**index["transformer"]),
            tokenizer=autoencoder.config,
        )
    except ValueError as error:
        raise UserError(f"{transformer} and {tokenizer} do not fit: {error}") from error
    save_model_directory(
        output,
        config,
        _complete(InfinityTransformer(config.transformer), load_tensors(transformer, weights)),
        _complete(BSQTokenizer(autoencoder.config), autoencoder.state_dict()),
        int8=storage == "int8",
        text_encoder_dir=text_encoder,
        max_shard_bytes=MAX_SHARD_BYTES,
        source={"weights": weights, "steps": str(index["steps"]), "storage": storage},
        replace=replace_existing,
    )
    return config


def _complete(module: torch.nn.Module, trained: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """``trained`` with the constant buffers that training does not average."""
    constant = {key: value for key, value in module.state_dict().items() if "zero_k_bias" in key}
    return constant | {key: value.float() for key, value in trained.items()}
