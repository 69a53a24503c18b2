"""The training log: one JSON object per line, in a file and as a log message."""

import json
import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from infinity.io.code_version import code_version

logger = logging.getLogger(__name__)

Value = float | int | str | list[float] | dict[str, Any] | None


class TrainingLog:
    """Appends rows to ``{folder}/log.jsonl``; silent on processes that are not the main one."""

    def __init__(self, folder: Path, active: bool = True) -> None:
        self._active = active
        self._path = folder / "log.jsonl"
        self._started = time.monotonic()
        if active:
            folder.mkdir(parents=True, exist_ok=True)

    def start(self, config: Any, device: torch.device, processes: int) -> None:
        """The first row of a run: everything that it takes to make it again.

        Args:
            config: dataclass of the run's settings, its seed among them.
            device: of the main process.
            processes: that train together.
        """
        cuda = device.type == "cuda"
        self.write(
            "start",
            config=asdict(config),
            device=torch.cuda.get_device_name(device) if cuda else str(device),
            processes=processes,
            torch=str(torch.__version__),
            **code_version(),
        )

    def write(self, event: str, **values: Value) -> None:
        """One row: the event, seconds since the log was opened, and ``values`` rounded."""
        if not self._active:
            return
        row = {"event": event, "elapsed_s": round(time.monotonic() - self._started, 2)}
        row |= {key: _rounded(value) for key, value in values.items()}
        line = json.dumps(row)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        logger.info("%s", line)


def _rounded(value: Value) -> Value:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, list):
        return [float(f"{item:.4g}") for item in value]
    return value
