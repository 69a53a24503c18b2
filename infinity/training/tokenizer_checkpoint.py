"""What a tokenizer run stores besides its weights: quantiser arm, architecture and gains."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from infinity.config import TokenizerConfig
from infinity.errors import UserError
from infinity.tokenizer.autoencoder import BSQTokenizer
from infinity.training.checkpoint import load_tensors, read_index
from infinity.training.config import CheckpointConfig, QuantizerArm
from infinity.training.run import TrainingRun
from infinity.training.tokenizer_objective import TokenizerObjective

GAINS_KEY = "quantizer.scale_gains"


def load_tokenizer(folder: str | Path, device: torch.device | str = "cpu") -> BSQTokenizer:
    """The averaged weights of a tokenizer checkpoint, fp32, frozen.

    Args:
        folder: of the checkpoint.
        device: to load to.

    Raises:
        UserError: the folder holds no complete tokenizer checkpoint.
    """
    folder = Path(folder)
    stored = read_index(folder).get("tokenizer")
    if stored is None:
        raise UserError(f"{folder}: this checkpoint holds no tokenizer.")
    stored["channel_multipliers"] = tuple(stored["channel_multipliers"])
    tokenizer = BSQTokenizer(TokenizerConfig(**stored))
    tokenizer.load_state_dict(load_tensors(folder, "ema"))
    return tokenizer.to(device).eval().requires_grad_(False)


def save_tokenizer_run(
    folder: Path,
    run: TrainingRun,
    objective: TokenizerObjective,
    model: TokenizerConfig,
    config: CheckpointConfig,
    psnr_db: float | None,
) -> None:
    """Writes a run's checkpoint; :func:`load_tokenizer` makes a tokenizer of it.

    Args:
        folder: of the checkpoint.
        run: of the objective's weights.
        objective: its arm and gains are stored.
        model: the tokenizer's architecture; whether it has gains follows from the arm.
        config: what to store and how large files may be.
        psnr_db: mean held-out round-trip PSNR; None where it was not measured.
    """
    arm, scales = objective.arm, len(objective.grids)
    model = replace(model, scale_gains=scales if arm.gains else 0)
    description = {"arm": asdict(arm), "tokenizer": asdict(model), "held_out_psnr_db": psnr_db}
    run.save(folder, config, description, {GAINS_KEY: objective.gains} if arm.gains else {})


def read_tokenizer_run(folder: Path) -> tuple[QuantizerArm, dict[str, Any]]:
    """The quantiser arm of a checkpoint, and its index.

    Raises:
        UserError: the folder holds no checkpoint of a tokenizer run.
    """
    index = read_index(folder)
    if "arm" not in index:
        raise UserError(f"{folder}: this checkpoint holds no tokenizer run.")
    return QuantizerArm(**index["arm"]), index


def restore_tokenizer_run(
    folder: Path, run: TrainingRun, objective: TokenizerObjective, *, anew: bool
) -> None:
    """Makes a checkpoint's weights and gains those of a run and its objective.

    Args:
        folder: of the checkpoint.
        run: of the objective's weights; its budget is not touched.
        objective: under the checkpoint's arm.
        anew: start from the averaged weights with fresh moments, instead of going on where the
            checkpoint's run stopped.

    Raises:
        UserError: the folder holds no complete checkpoint of this model.
    """
    if anew:
        run.start_from(folder)
    else:
        run.load(folder)
    stored = load_tensors(folder, "ema" if anew else "raw")
    if GAINS_KEY in stored:
        objective.gains.copy_(stored[GAINS_KEY])
