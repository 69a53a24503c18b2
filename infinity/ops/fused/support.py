"""Where the Triton kernels of this room can run."""

import inspect
import os
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from infinity.errors import UserError

try:
    import triton
except ImportError:
    triton = None

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Kernels run on CPU tensors, slowly and for tests only."""

SWITCHES = (
    "attention",
    "embed",
    "mean_distance",
    "nearest",
    "principal",
    "quantise",
    "residual_norm",
    "rotate",
    "roughness",
    "sample",
    "small_attention",
    "spread",
    "text_attention",
    "top",
    "uniform",
)
"""Kernels by file, each of which ``STEPVAR_KERNELS_OFF`` can replace by its torch form."""


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


@lru_cache
def switched_off() -> frozenset[str]:
    """Kernels that ``STEPVAR_KERNELS_OFF`` names, which compute nothing in this process.

    Raises:
        UserError: it names a kernel that there is not.
    """
    names = frozenset(os.environ.get("STEPVAR_KERNELS_OFF", "").replace(",", " ").split())
    if unknown := sorted(names - set(SWITCHES)):
        raise UserError(
            f"STEPVAR_KERNELS_OFF names {', '.join(unknown)}; allowed: {', '.join(SWITCHES)}"
        )
    return names


def usable(x: Tensor, name: str) -> bool:
    """Whether a kernel may compute something from ``x``: right device, nothing to differentiate,
    not switched off.

    Args:
        x: an input.
        name: of the kernel, one of :data:`SWITCHES`.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        return False
    return why_not(x.device) is None and name not in switched_off()


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least ``n``."""
    return 1 << max(n - 1, 0).bit_length()


def warps_of(block: int) -> int:
    """Warps of a program that holds vectors of ``block`` fp32 numbers in registers."""
    return 4 if block <= 2048 else 8


def kernel(function: Callable) -> Any:
    """``function`` as a Triton kernel, whatever run-time type checks were wrapped around it."""
    return triton.jit(inspect.unwrap(function))
