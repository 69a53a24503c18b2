"""Attention over packed rows behind one registry; one backend per file, ``sdpa`` the reference.

``select("auto", AttentionRequest.on(...))`` gives a callable that follows ``AttentionBackend``.
"""

from infinity.ops.attention.base import (
    AttentionBackend,
    AttentionRequest,
    KeyValues,
    Layout,
    half_precision_on_cuda,
)
from infinity.ops.attention.registry import (
    DENSE_ORDER,
    RAGGED_ORDER,
    names,
    register,
    select,
    support_table,
)
from infinity.ops.attention.sdpa import SdpaAttention

__all__ = [
    "DENSE_ORDER",
    "RAGGED_ORDER",
    "AttentionBackend",
    "AttentionRequest",
    "KeyValues",
    "Layout",
    "half_precision_on_cuda",
    "names",
    "register",
    "select",
    "support_table",
]

register("sdpa", SdpaAttention)


def _flash_attn_4() -> AttentionBackend:
    from infinity.ops.attention.flash_attn_4 import FlashAttention4

    return FlashAttention4()


def _torch_varlen() -> AttentionBackend:
    from infinity.ops.attention.torch_varlen import TorchVarlenAttention

    return TorchVarlenAttention()


def _flash_attn() -> AttentionBackend:
    from infinity.ops.attention.flash_attn import FlashAttention

    return FlashAttention()


def _xformers() -> AttentionBackend:
    from infinity.ops.attention.xformers import XformersAttention

    return XformersAttention()


register("flash_attn_4", _flash_attn_4)
register("torch_varlen", _torch_varlen)
register("flash_attn", _flash_attn)
register("xformers", _xformers)
