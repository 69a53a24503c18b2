"""What a training run starts with: its processes and their device, its folder, log and deadline."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import parse_flag_from_env, set_seed

from infinity.io.files import check_writable
from infinity.training.budget import Budget, deadline_after
from infinity.training.config import TrainTokenizerConfig, TrainTransformerConfig
from infinity.training.log import TrainingLog


@dataclass(frozen=True)
class Session:
    """A run's processes, and where they leave what they find.

    Attributes:
        accelerator: the processes that train together.
        folder: checkpoint, log and sheets go here.
        log: silent on processes that are not the main one.
        deadline: moment of ``time.monotonic()`` at which training ends; None = no such limit.
    """

    accelerator: Accelerator
    folder: Path
    log: TrainingLog
    deadline: float | None

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def processes(self) -> int:
        return self.accelerator.num_processes

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    def budget(
        self, max_steps: int, max_seconds: float, steps: int = 0, seconds: float = 0.0
    ) -> Budget:
        """An allowance that the processes agree on and that the deadline shortens.

        Args:
            max_steps, max_seconds: the allowance.
            steps, seconds: used of it by earlier runs.
        """
        agree = _agreement(self.accelerator)
        return Budget(max_steps, max_seconds, steps, seconds, agree, self.deadline)


def open_session(config: TrainTokenizerConfig | TrainTransformerConfig) -> Session:
    """The session of a run: generators seeded, clock running, settings in the log's first row.

    Raises:
        UserError: ``output_dir`` cannot be written.
    """
    deadline = deadline_after(config.wall_seconds)
    accelerator = _start_accelerator(config.seed)
    folder = Path(config.output_dir)
    check_writable(folder, "output_dir")
    log = TrainingLog(folder, accelerator.is_main_process)
    log.start(config, accelerator.device, accelerator.num_processes)
    return Session(accelerator, folder, log, deadline)


def _start_accelerator(seed: int) -> Accelerator:
    """Accelerator with bf16 autocast on CUDA and fp32 elsewhere, and seeded generators.

    ``ACCELERATE_USE_CPU=true`` in the environment keeps it off the GPU. Without ``cpu=True``
    accelerate would let the processes of a CPU launch train apart, without a word.
    """
    cpu = not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")
    cuda = PartialState(cpu=cpu).device.type == "cuda"
    accelerator = Accelerator(mixed_precision="bf16" if cuda else "no", cpu=cpu)
    set_seed(seed)
    if cuda:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    return accelerator


def _agreement(accelerator: Accelerator) -> Callable[[float], float]:
    """The mean over processes of a host number; the number itself with one process."""
    if accelerator.num_processes == 1:
        return float
    return lambda value: float(
        accelerator.reduce(torch.tensor(value, device=accelerator.device), reduction="mean")
    )
