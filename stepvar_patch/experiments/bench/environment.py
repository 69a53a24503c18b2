"""What a measurement was made on: hardware, versions, clocks (only read) and the code's commit."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from stepvar_patch.experiments.generate import versions

_GPU_FIELDS = (
    "driver_version",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "power.draw",
    "power.limit",
    "temperature.gpu",
    "utilization.gpu",
)


def environment(device: torch.device) -> dict[str, Any]:
    """Name → value; what cannot be found out is None.

    Args:
        device: that the measurement runs on.
    """
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "system": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "device": str(device),
        **{name: str(value) for name, value in versions().items()},
        **(_gpu(device) if device.type == "cuda" else {"gpu": None}),
        **_commit(),
    }


def gpu_state(device: torch.device) -> dict[str, str] | None:
    """Driver, clocks, power and temperature as nvidia-smi tells them; None without it or a GPU."""
    if device.type != "cuda":
        return None
    uuid = torch.cuda.get_device_properties(device).uuid
    words = ["nvidia-smi", f"--id=GPU-{uuid}", f"--query-gpu={','.join(_GPU_FIELDS)}"]
    told = _told([*words, "--format=csv,noheader"])
    values = told.split(", ") if told else []
    return dict(zip(_GPU_FIELDS, values, strict=True)) if len(values) == len(_GPU_FIELDS) else None


def _gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "gpu_memory_mib": properties.total_memory >> 20,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "gpu_state": gpu_state(device),
    }


def _commit() -> dict[str, Any]:
    """The commit of this code and whether files differ from it; None outside a git checkout."""
    folder = Path(__file__).parent
    commit = _told(["git", "-C", str(folder), "rev-parse", "HEAD"])
    status = _told(["git", "-C", str(folder), "status", "--porcelain"])
    return {"commit": commit or None, "dirty": None if status is None else bool(status)}


def _told(words: list[str]) -> str | None:
    """What a program prints; None if it is missing or fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu_name() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else None
