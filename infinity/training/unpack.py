"""From a model directory back to training checkpoints: a shipped model can be trained on."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from infinity.checkpoint import load_model_config, read_state
from infinity.checkpoint.directory import source_of
from infinity.config import ModelConfig, TokenizerConfig
from infinity.errors import UserError
from infinity.training.checkpoint import save_tensors, write_index
from infinity.training.config import CheckpointConfig, QuantizerArm

COMMITMENT = 0.2
"""Weight of the embedded tokenizer's commitment loss (``configs/train/tokenizer.yaml``)."""


def unpack_model(model: Path, output: Path) -> ModelConfig:
    """Writes ``output/tokenizer`` and ``output/transformer``, checkpoints to start runs from.

    A model directory holds averaged weights only, so they stand for the raw ones too and there are
    no moments: such a checkpoint serves ``resume=weights``. Returns the model's configuration.

    Args:
        model: directory that :func:`infinity.training.export.export_model` wrote.
        output: folder to write into; neither checkpoint may be there already.

    Raises:
        UserError: no model directory, a damaged file, not a small model's tokenizer, or a
            checkpoint in the way.
    """
    config = load_model_config(model)
    for name in ("tokenizer", "transformer"):
        if (output / name).exists():
            raise UserError(f"{output / name}: is there already; name another folder")
    steps = source_of(model).get("steps", "")
    tokenizer, transformer = read_state(model, "tokenizer"), read_state(model, "transformer")
    _write(
        output / "tokenizer",
        tokenizer,
        {"tokenizer": asdict(config.tokenizer), "arm": asdict(_arm(config.tokenizer))},
    )
    _write(
        output / "transformer",
        {key: transformer[key] for key in transformer if "zero_k_bias" not in key},
        {
            "transformer": asdict(config.transformer),
            "phase": 0,
            "steps": int(steps) if steps.isdecimal() else 0,
        },
    )
    return config


def _arm(tokenizer: TokenizerConfig) -> QuantizerArm:
    """The quantiser arm that trains such a tokenizer on."""
    gains = bool(tokenizer.scale_gains)
    return QuantizerArm(
        name="gains" if gains else "unit-codes-latent",
        gains=gains,
        straight_through="latent",
        loss_weight=COMMITMENT,
    )


def _write(folder: Path, tensors: Mapping[str, Tensor], description: dict[str, Any]) -> None:
    shard_mib = CheckpointConfig().shard_mib
    for name in ("raw", "ema"):
        save_tensors(folder, name, dict(tensors.items()), shard_mib, half=True)
    start = {"state": "half", "steps": 0, "seconds": 0.0, "warm_steps": 0, "ema_steps": 0}
    write_index(folder, start | description)
