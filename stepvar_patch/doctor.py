"""What this machine offers to a run."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("stepvar", "torch", "transformers", "flash-attn", "xformers", "accelerate")


def environment() -> dict[str, str]:
    """Name → value of all that decides what runs here and how fast."""
    import torch

    report = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
        **{name: _version(name) for name in _PACKAGES},
    }
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            report[f"cuda:{index}"] = f"{device.name}, {device.total_memory >> 20} MiB"
    else:
        report["cuda"] = "no GPU; images are drawn on the CPU"
    return report


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
