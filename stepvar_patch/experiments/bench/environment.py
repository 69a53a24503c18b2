"""What a measurement was made on: hardware, versions, clocks (only read) and the code's commit."""

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from infinity.io.code_version import code_version, told

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
        "python": platform.python_version(),
        "torch": torch.__version__,
        **(_gpu(device) if device.type == "cuda" else {"gpu": None}),
        **code_version(),
    }


def machine(device: torch.device) -> dict[str, Any]:
    """The part of :func:`environment` that a table of results needs."""
    names = ("time", "cpu", "gpu", "python", "torch", "commit", "dirty", "code_sha256")
    found = environment(device)
    return {name: found[name] for name in names}


def gpu_state(device: torch.device) -> dict[str, str] | None:
    """Driver, clocks, power and temperature as nvidia-smi tells them; None without it or a GPU."""
    if device.type != "cuda":
        return None
    uuid = torch.cuda.get_device_properties(device).uuid
    words = ["nvidia-smi", f"--id=GPU-{uuid}", f"--query-gpu={','.join(_GPU_FIELDS)}"]
    answer = told([*words, "--format=csv,noheader"])
    values = answer.split(", ") if answer else []
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


def _cpu_name() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or None
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else None
