"""What a measurement was made on: hardware, versions, clocks (only read) and the code's commit."""

import hashlib
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

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
        **_commit(),
        "code_sha256": _code_digest(),
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


def _code_digest() -> str:
    """Of this installation's source files, which tells the code apart where git cannot."""
    root = Path(__file__).parents[3]
    digest = hashlib.sha256()
    rooms = (root / "infinity", root / "stepvar_patch")
    for path in sorted(path for room in rooms for path in room.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


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
