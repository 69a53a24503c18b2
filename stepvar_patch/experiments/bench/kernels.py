"""Which kernels one draw spends its time in."""

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

TOP = 15
"""Kernels that are listed, the longest first."""


def kernel_table(work: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """GPU kernels of ``work``, or operators on a CPU, by time.

    Args:
        work: called once; on a GPU the last thing it does need not be finished when it returns.
        device: where it runs.

    Returns:
        ``busy_ms`` and ``launches`` of all of them, and ``top``: ``name``, ``ms``, ``launches``.
    """
    on_gpu = device.type == "cuda"
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        work()
        if on_gpu:
            torch.cuda.synchronize(device)
    found = [
        (event.self_device_time_total if on_gpu else event.self_cpu_time_total, event)
        for event in profiler.key_averages()
    ]
    spent = sorted(((us, event) for us, event in found if us > 0), key=lambda pair: -pair[0])
    return {
        "busy_ms": round(sum(us for us, _ in spent) / 1e3, 3),
        "launches": sum(event.count for _, event in spent),
        "top": [
            {"name": event.key[:80], "ms": round(us / 1e3, 3), "launches": event.count}
            for us, event in spent[:TOP]
        ],
    }
