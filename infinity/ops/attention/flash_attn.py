"""FlashAttention-2 from the ``flash-attn`` package (extra ``flash``)."""

from flash_attn import flash_attn_varlen_func
from jaxtyping import Float, Int32
from torch import Tensor

from infinity.ops.attention.base import (
    AttentionRequest,
    KeyValues,
    flash_attention_2,
    packed_keys,
)


class FlashAttention:
    """Its packed function knows no valid length per row, so ragged padded caches are copied."""

    name = "flash_attn"

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
        k, v, cu_seqlens_k = packed_keys(kv)
        return flash_attn_varlen_func(
            q_THD,
            k,
            v,
            cu_seqlens_q,
            cu_seqlens_k,
            max_seqlen_q,
            kv.max_seqlen,
            softmax_scale=scale,
        )
