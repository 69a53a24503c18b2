"""What this machine offers to a run."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("stepvar", "torch", "transformers", "flash-attn", "xformers", "accelerate")

_HEAD_DIM = 128
"""Of the released 2B and 8B models, which the attention backends are asked about."""


def environment() -> dict[str, str]:
    """Name → value of all that decides what runs here and how fast."""
    import torch

    from infinity.ops.attention import AttentionRequest, support_table

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
    on_gpu = torch.cuda.is_available()
    ragged, equal = (
        AttentionRequest.on(
            torch.device("cuda:0" if on_gpu else "cpu"),
            torch.bfloat16 if on_gpu else torch.float32,
            _HEAD_DIM,
            ragged=differ,
            layout="padded",
        )
        for differ in (True, False)
    )
    for (name, reason), (_, of_equal) in zip(
        support_table(ragged), support_table(equal), strict=True
    ):
        usable = "usable" if reason is None else "usable for rows of equal length"
        report[f"attention {name}"] = usable if of_equal is None else f"not usable: {reason}"
    return report


def card_bytes(device: str) -> int | None:
    """Memory of a GPU, ``cuda`` or ``cuda:N``; None for the CPU."""
    import torch

    if device == "cpu":
        return None
    return int(torch.cuda.get_device_properties(torch.device(device)).total_memory)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
