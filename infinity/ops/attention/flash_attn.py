"""FlashAttention-2 from the ``flash-attn`` package (extra ``flash``)."""

from flash_attn import flash_attn_varlen_func
from jaxtyping import Float, Int32
from torch import Tensor

from infinity.ops.attention.base import (
    AttentionRequest,
    KeyValues,
    half_precision_on_cuda,
    packed_keys,
)


class FlashAttention:
    """Its packed function knows no valid length per row, so ragged padded caches are copied."""

    name = "flash_attn"

    def supports(self, request: AttentionRequest) -> str | None:
        if reason := half_precision_on_cuda(request):
            return reason
        if request.capability is None or request.capability < (8, 0):
            return f"needs compute capability 8.0, not {request.capability}"
        if request.head_dim % 8 or request.head_dim > 256:
            return f"takes head dims that are multiples of 8 up to 256, not {request.head_dim}"
        return None

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
