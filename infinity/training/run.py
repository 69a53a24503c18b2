"""What every training run trains with: an optimiser, an average of the weights, a budget."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from infinity.training.budget import Budget, learning_rate
from infinity.training.checkpoint import (
    load_optimizer_tensors,
    load_tensors,
    optimizer_tensors,
    read_index,
    save_tensors,
    write_index,
)
from infinity.training.config import CheckpointConfig, OptimizerConfig
from infinity.training.ema import ExponentialMovingAverage

Decays = Callable[[str, Tensor], bool]
"""``(parameter name, parameter) → whether weight decay applies``."""


def synchronize(device: torch.device) -> None:
    """Waits for the work queued on a CUDA device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class TrainingRun:
    """AdamW on a model, the moving average of its weights, and the run's budget.

    Args:
        model: the bare model (not wrapped for distribution).
        accelerator: does the backward pass.
        optimizer_config: AdamW's settings and the learning-rate schedule.
        decays: which parameters weight decay applies to.
        ema_window: of the moving average, in steps.
        budget: steps and seconds allowed.
    """

    def __init__(
        self,
        model: nn.Module,
        accelerator: Accelerator,
        optimizer_config: OptimizerConfig,
        decays: Decays,
        ema_window: int,
        budget: Budget,
    ) -> None:
        self.model, self.accelerator, self.config = model, accelerator, optimizer_config
        self.budget = budget
        self.warm_steps = 0
        self.ema = ExponentialMovingAverage(model, ema_window)
        named = [(key, value) for key, value in model.named_parameters() if value.requires_grad]
        groups = [
            {"params": [p for key, p in named if decays(key, p)]},
            {"params": [p for key, p in named if not decays(key, p)], "weight_decay": 0.0},
        ]
        self._parameters = [value for _, value in named]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=optimizer_config.learning_rate,
            betas=optimizer_config.betas,
            weight_decay=optimizer_config.weight_decay,
            fused=accelerator.device.type == "cuda",
        )

    def step(self, loss: Tensor, progress: float) -> None:
        """Backward pass, clipping, update of weights and average; counts the step."""
        rate = learning_rate(self.config, self.warm_steps, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.accelerator.backward(loss)
        torch.nn.utils.clip_grad_norm_(self._parameters, self.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update()
        self.warm_steps += 1
        self.budget.tick()

    @property
    def learning_rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def save(
        self,
        folder: Path,
        config: CheckpointConfig,
        description: dict[str, Any],
        extra: dict[str, Tensor] | None = None,
    ) -> None:
        """Writes raw and averaged weights, with ``full`` the moments too, and the JSON index.

        Args:
            folder: checkpoint folder.
            config: what to store and how large files may be.
            description: merged into the index.
            extra: tensors stored with both raw and averaged weights, such as buffers.
        """
        if not self.accelerator.is_main_process:
            return
        extra = extra or {}
        half = config.state == "half"
        raw = dict(self.model.named_parameters())
        save_tensors(folder, "raw", raw | extra, config.shard_mib, half)
        save_tensors(folder, "ema", self.ema.state() | extra, config.shard_mib, half)
        if not half:
            moments = optimizer_tensors(self.model, self.optimizer)
            save_tensors(folder, "optimizer", moments, config.shard_mib, half=False)
        write_index(
            folder,
            {
                "state": config.state,
                "steps": self.budget.steps,
                "seconds": round(self.budget.seconds, 3),
                "warm_steps": self.warm_steps,
                "ema_steps": self.ema.steps,
                **description,
            },
        )

    @torch.no_grad()
    def load(self, folder: Path) -> dict[str, Any]:
        """The index of a checkpoint whose weights (and moments, if stored) are now this run's.

        Without moments the learning rate warms up again. The budget is not touched.

        Raises:
            UserError: the folder holds no complete checkpoint of this model.
        """
        index = read_index(folder)
        raw = load_tensors(folder, "raw")
        for key, value in self.model.named_parameters():
            value.copy_(raw[key])
        self.ema.load(load_tensors(folder, "ema"), index["ema_steps"])
        if index["state"] == "full":
            stored = load_tensors(folder, "optimizer")
            load_optimizer_tensors(self.model, self.optimizer, stored)
            self.warm_steps = index["warm_steps"]
        return index

    @torch.no_grad()
    def start_from(self, folder: Path) -> None:
        """Makes the averaged weights of a checkpoint this run's start; moments and average are new.

        Raises:
            UserError: the folder holds no complete checkpoint of this model.
        """
        stored = load_tensors(folder, "ema")
        for key, value in self.model.named_parameters():
            value.copy_(stored[key])
        self.ema.restart()
