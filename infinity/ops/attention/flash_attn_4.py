"""FlashAttention-4 (``flash_attn.cute``, a pre-release: ``pip install --pre flash-attn-4``)."""

from flash_attn.cute import flash_attn_varlen_func
from jaxtyping import Float, Int32
from torch import Tensor

from infinity.ops.attention.base import AttentionRequest, KeyValues, half_precision_on_cuda


class FlashAttention4:
    """Takes padded caches with a valid length per row as they are; compiles at the first call."""

    name = "flash_attn_4"

    def supports(self, request: AttentionRequest) -> str | None:
        if reason := half_precision_on_cuda(request):
            return reason
        if request.capability is None or request.capability[0] < 9:
            return f"is used from compute capability 9.0 on, not {request.capability}"
        if request.head_dim % 8 or request.head_dim > 128:
            return f"takes head dims that are multiples of 8 up to 128, not {request.head_dim}"
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
        out = flash_attn_varlen_func(
            q_THD,
            kv.k,
            kv.v,
            cu_seqlens_q=cu_seqlens_q,
            cu_seqlens_k=kv.cu_seqlens,
            seqused_k=kv.seqused,
            max_seqlen_q=max_seqlen_q,
            max_seqlen_k=kv.max_seqlen,
            softmax_scale=scale,
        )
        return out[0] if isinstance(out, tuple) else out
