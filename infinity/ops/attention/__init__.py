"""Attention over packed rows behind one registry; one backend per file, ``sdpa`` the reference.

``select("auto", AttentionRequest.on(...))`` gives a callable that follows ``AttentionBackend``.
"""

from collections.abc import Callable
from importlib import import_module

from infinity.ops.attention.base import AttentionBackend, AttentionRequest, KeyValues
from infinity.ops.attention.registry import (
    names,
    register,
    select,
    support_table,
)
from infinity.ops.attention.sdpa import SdpaAttention

__all__ = [
    "AttentionBackend",
    "AttentionRequest",
    "KeyValues",
    "names",
    "register",
    "select",
    "support_table",
]


def _on_first_use(module: str, backend: str) -> Callable[[], AttentionBackend]:
    """A loader: these modules import packages that may not be installed."""
    return lambda: getattr(import_module(f"{__name__}.{module}"), backend)()


register("sdpa", SdpaAttention)
register("triton", _on_first_use("triton", "TritonAttention"))
register("flash_attn_4", _on_first_use("flash_attn_4", "FlashAttention4"))
register("torch_varlen", _on_first_use("torch_varlen", "TorchVarlenAttention"))
register("flash_attn", _on_first_use("flash_attn", "FlashAttention"))
register("xformers", _on_first_use("xformers", "XformersAttention"))
