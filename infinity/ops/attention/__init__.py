"""Attention over packed rows behind one registry; one backend per file, ``sdpa`` the reference.

backend = select("auto", AttentionRequest.on(device, dtype, head_dim, ragged=False, layout="padded"))
out = backend(q_THD, kv, cu_seqlens_q=cu, max_seqlen_q=n, uniform_q=True, scale=1.0)
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
