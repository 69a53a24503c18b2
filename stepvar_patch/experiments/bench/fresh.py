"""The first images of a fresh process: what starting, loading, compiling and capturing cost.

Run as a program, this module reads ``{"config", "arm", "batch_size", "started"}`` on stdin and
prints what it measured.
"""

import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from infinity.pipeline import InfinityPipeline
from stepvar_patch.experiments.bench.models import Models, weight_bytes
from stepvar_patch.experiments.bench.row import Drawer, synchronize
from stepvar_patch.experiments.bench.schema import BenchConfig, arms
from stepvar_patch.experiments.problems import parse

TIME_LIMIT_S = 1800


def first_image(config: BenchConfig, arm: str, batch_size: int) -> dict[str, Any]:
    """What a fresh process needs for its first three draws of an arm.

    Returns:
        ``start_ms`` (interpreter and imports), ``load_ms`` (weights), ``first_ms``, ``second_ms``,
        ``third_ms`` (draws of a whole batch), ``weights_mib`` and ``peak_over_weights_mib`` (None
        where the system does not tell); or ``error``.
    """
    asked = {"config": asdict(config), "arm": arm, "batch_size": batch_size, "started": time.time()}
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"error": str(error)}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"error": lines[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _measure(asked: dict[str, Any]) -> dict[str, float | None]:
    started_ms = 1e3 * (time.time() - asked["started"])
    config = parse(BenchConfig, asked["config"])
    arm = next(arm for arm in arms(config) if arm.label == asked["arm"])
    before = time.perf_counter()
    pipeline = Models(config, InfinityPipeline.from_pretrained).pipeline(arm)
    drawer = Drawer(arm, asked["batch_size"], config, pipeline)
    synchronize(pipeline.device)
    load_ms = 1e3 * (time.perf_counter() - before)
    weights = weight_bytes(pipeline)
    held = _forget_peak()
    if pipeline.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(pipeline.device)
    first, second, third = (drawer.timed(index, index).total_ms for index in range(3))
    if pipeline.device.type == "cuda":
        peak: int | None = torch.cuda.max_memory_allocated(pipeline.device) - weights
    else:
        highest = _resident_bytes("VmHWM")
        peak = highest - held if highest and held else None
    return {
        "start_ms": started_ms,
        "load_ms": load_ms,
        "first_ms": first,
        "second_ms": second,
        "third_ms": third,
        "weights_mib": weights / 2**20,
        "peak_over_weights_mib": None if peak is None else peak / 2**20,
    }


def _forget_peak() -> int | None:
    """Resident memory now, from which the highest is counted anew; None where that cannot be."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _resident_bytes("VmRSS")


def _resident_bytes(name: str) -> int | None:
    """A line of Linux' memory report on this process; None on other systems."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = [line.split() for line in lines if line.startswith(f"{name}:")]
    return int(found[0][1]) * 1024 if found else None


if __name__ == "__main__":
    measured = _measure(json.load(sys.stdin))
    rounded = {name: None if ms is None else round(ms, 1) for name, ms in measured.items()}
    sys.stdout.write(json.dumps(rounded) + "\n")
