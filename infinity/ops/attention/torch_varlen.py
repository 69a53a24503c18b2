"""torch's own packed attention (``torch.nn.attention.varlen``), a FlashAttention-2 kernel."""

import inspect

import torch
from jaxtyping import Float, Int32
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from infinity.ops.attention.base import (
    AttentionRequest,
    KeyValues,
    flash_attention_2,
    packed_keys,
)

_SEQUSED = "seqused_k" in inspect.signature(varlen_attn).parameters
"""torch 2.11 has none: there, ragged rows of a padded cache are copied into packed layout."""


class TorchVarlenAttention:
    """Needs no package beyond torch."""

    name = "torch_varlen"

    def supports(self, request: AttentionRequest) -> str | None:
        return flash_attention_2(request)

    def __call__(
        self,
        q_THD: Float[Tensor, "T H D"],
        kv: KeyValues,
        *,
        cu_seqlens_q: Int32[Tensor, " b1"],
        max_seqlen_q: int,
        uniform_q: bool,
        scale: float,
    ) -> Float[Tensor, "T H D"]:
        extra = {}
        if _SEQUSED and kv.seqused is not None:
            rows, capacity = kv.k.shape[:2]
            k, v = kv.k.flatten(0, 1), kv.v.flatten(0, 1)
            starts = torch.arange(rows + 1, device=k.device, dtype=torch.int32)
            cu_seqlens_k = starts * capacity
            extra["seqused_k"] = kv.seqused
        else:
            k, v, cu_seqlens_k = packed_keys(kv)
        return varlen_attn(
            q_THD,
            k,
            v,
            cu_seqlens_q,
            cu_seqlens_k,
            max_seqlen_q,
            kv.max_seqlen,
            scale=scale,
            **extra,
        )
