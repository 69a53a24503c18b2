"""Resident memory of this process. ``ru_maxrss`` will not do: it survives fork and exec."""

from pathlib import Path


def resident_mib() -> float:
    return _status("VmRSS")


def peak_mib() -> float:
    """The most since the process began or `restart_peak` was called."""
    return _status("VmHWM")


def restart_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024
