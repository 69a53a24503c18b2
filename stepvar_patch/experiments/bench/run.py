"""A benchmark: arms side by side in one process, round by round."""

import gc
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from infinity.errors import UserError
from infinity.loading import resolve_device
from stepvar_patch.experiments.bench.environment import environment, gpu_state
from stepvar_patch.experiments.bench.files import make_folder_of, write_record
from stepvar_patch.experiments.bench.fresh import first_image
from stepvar_patch.experiments.bench.kernels import kernel_table
from stepvar_patch.experiments.bench.models import Models, check_weights
from stepvar_patch.experiments.bench.record import MODES, Row, about
from stepvar_patch.experiments.bench.row import Drawer, synchronize
from stepvar_patch.experiments.bench.schema import RANDOM, BenchConfig, arms
from stepvar_patch.experiments.generate import Progress

logger = logging.getLogger(__name__)

FORMAT = "stepvar-bench/1"
NO_QUALITY = (
    "random weights: times, memory and operations depend on the shapes alone; the pictures, and "
    "whatever a policy chose from their content, mean nothing"
)


def run(
    config: BenchConfig, progress: Progress, load: Callable[..., Any], command: str
) -> dict[str, Any]:
    """Measures every arm and writes the file after every round.

    All rows are warmed up first. Then every round draws every row once (larger batches not in every
    round, if the config says so), starting one row further than the round before, so that the
    machine's moods meet all rows alike.

    Args:
        config: of the benchmark.
        progress: told of every timed draw.
        load: reads a model directory.
        command: that the file names.

    Returns:
        What the file holds.

    Raises:
        UserError: weights, device or output place that are not there, or no arm that runs.
    """
    check_weights(config)
    device = resolve_device(config.device)
    bench = _Bench(config, load, device, command)
    bench.prepare()
    bench.write()
    modes = MODES if config.pace_s else MODES[:1]
    rounds = [(index, mode) for index in range(config.rounds) for mode in modes]
    progress.start(sum(len(bench.due(index, mode)) for index, mode in rounds), 0)
    for index in range(config.rounds):
        for mode in modes:
            bench.round(index, mode, progress)
        bench.rounds_done = index + 1
        bench.write()
    if config.kernels:
        bench.kernels()
        bench.write()
    if config.first_image:
        bench.first_images()
    if not bench.running:
        reasons = "\n".join(f"  {row.arm.label}: {row.error}" for row in bench.rows)
        raise UserError(f"no arm could run:\n{reasons}")
    return bench.record()


class _Bench:
    """The rows, their drawers, and the file."""

    def __init__(
        self, config: BenchConfig, load: Callable[..., Any], device: torch.device, command: str
    ) -> None:
        self.config, self.device, self.command = config, device, command
        self.models = Models(config, load)
        self.rows = [
            Row(arm=arm, batch_size=size)
            for arm in arms(config)
            for size in arm.batch_sizes or (1,)
        ]
        self.drawers: dict[int, Drawer] = {}
        self.rounds_done = self.position = 0
        self.environment = environment(device)
        self.path = Path(config.output)
        make_folder_of(self.path)

    @property
    def running(self) -> list[Row]:
        return [row for row in self.rows if row.error is None]

    def prepare(self) -> None:
        """Loads, looks at and warms up every row."""
        # Large batches first: memory that grows later costs recorded calls their graphs.
        for row in sorted(self.rows, key=lambda row: -row.batch_size):
            with self._attempt(row):
                pipeline = self.models.pipeline(row.arm)
                drawer = Drawer(row.arm, row.batch_size, self.config, pipeline)
                row.about = about(row.arm, drawer)
                row.kept, row.flops = drawer.kept_tokens(), drawer.flops()
                for _ in range(self.config.warmup):
                    row.peak_mib = self._peak_mib(drawer)
                self.drawers[id(row)] = drawer

    def due(self, index: int, mode: str) -> list[Row]:
        """The running rows that a round draws."""
        first, further = self._first_of_arms(), self.config.further_rounds
        if mode == "paced" or (further is not None and index >= further):
            return first
        return self.running

    def round(self, index: int, mode: str, progress: Progress) -> None:
        """Every row that is due once."""
        rows = self.due(index, mode)
        start = index % max(1, len(rows))
        for row in rows[start:] + rows[:start]:
            with self._attempt(row):
                if mode == "paced":
                    synchronize(self.device)
                    time.sleep(self.config.pace_s)
                sample = self.drawers[id(row)].timed(index, self.position)
                row.samples[mode].append(sample)
                self.position += 1
            progress.advance(1)

    def kernels(self) -> None:
        """One profiled draw, and one with all its stages, of the arms that are looked into."""
        for row in self._first_of_arms():
            if row.arm.label in self.config.kernels:
                with self._attempt(row):
                    drawer = self.drawers[id(row)]
                    row.kernels = kernel_table(drawer.draw, self.device)
                    if self.device.type == "cuda":
                        row.stages_inside = drawer.stages_inside()

    def first_images(self) -> None:
        """A fresh process for each of the arms that are asked for."""
        for row in self._first_of_arms():
            if row.arm.label in self.config.first_image:
                row.first_image = first_image(self.config, row.arm.label, row.batch_size)
                self.write()

    def _first_of_arms(self) -> list[Row]:
        """Of every arm the first batch size that runs."""
        return list({row.arm.label: row for row in reversed(self.running)}.values())[::-1]

    def record(self) -> dict[str, Any]:
        """What the file holds."""
        config, loaded = self.config, self.models.opened
        return {
            "format": FORMAT,
            "command": self.command,
            "note": NO_QUALITY if config.weights == RANDOM else None,
            "config": asdict(config),
            "environment": self.environment,
            "gpu_state_at_end": gpu_state(self.device),
            "model": None
            if not loaded
            else {
                "name": loaded[0].config.name,
                "digest": loaded[0].digest,
                "weights_mib": round(self.models.weight_bytes() / 2**20 / len(loaded), 1),
            },
            "rounds_done": self.rounds_done,
            "rows": [row.to_json(self._baseline(row)) for row in self.rows],
        }

    def write(self) -> None:
        """Puts the file in place, whole."""
        write_record(self.path, self.record())

    def _baseline(self, row: Row) -> Row | None:
        """The baseline's row of the same batch size."""
        found = [
            other
            for other in self.rows
            if other.arm.label == self.config.baseline and other.batch_size == row.batch_size
        ]
        return found[0] if found else None

    def _peak_mib(self, drawer: Drawer) -> float | None:
        if self.device.type != "cuda":
            drawer.draw()
            return None
        torch.cuda.reset_peak_memory_stats(self.device)
        drawer.draw()
        synchronize(self.device)
        peak = torch.cuda.max_memory_allocated(self.device)
        return float(peak - self.models.weight_bytes()) / 2**20

    @contextmanager
    def _attempt(self, row: Row) -> Iterator[None]:
        """A failing row is left out from here on, and says why."""
        try:
            yield
        except UserError as error:
            row.error = str(error)
        except Exception as error:
            logger.warning("arm %s, batch %d failed", row.arm.label, row.batch_size, exc_info=True)
            row.error = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        if row.error is not None:
            self.drawers.pop(id(row), None)
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
