"""Where the Triton kernels of this room can run."""

import inspect
import os
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

try:
    import triton
except ImportError:
    triton = None

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Kernels run on CPU tensors, slowly and for tests only."""


@lru_cache
def why_not(device: torch.device) -> str | None:
    """None if the kernels run on ``device``, else the reason why they do not."""
    if triton is None:
        return "triton is not installed"
    if INTERPRETED:
        return None
    if device.type != "cuda":
        return f"the kernels need a CUDA device, not {device.type}"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return f"the kernels need compute capability 8.0, not {capability[0]}.{capability[1]}"
    return None


def usable(x: Tensor) -> bool:
    """Whether a kernel may compute something from ``x``: right device, nothing to differentiate."""
    return not (torch.is_grad_enabled() and x.requires_grad) and why_not(x.device) is None


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least ``n``."""
    return 1 << max(n - 1, 0).bit_length()


def kernel(function: Callable) -> Any:
    """``function`` as a Triton kernel, whatever run-time type checks were wrapped around it."""
    return triton.jit(inspect.unwrap(function))
