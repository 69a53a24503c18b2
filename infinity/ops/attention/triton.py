"""Our own kernel for equal rows: no set-up before it, the fastest where there are few queries."""

from jaxtyping import Float, Int32
from torch import Tensor

from infinity.ops.attention.base import AttentionRequest, KeyValues, flash_attention_2
from infinity.ops.fused import support
from infinity.ops.fused.attention import attention, readable

_WIDEST = 128
"""Channels of a head: with more, keys and values outgrow shared memory on many cards."""


class TritonAttention:
    """The kernel of ``infinity/ops/fused/attention.py``; made for self-attention to the caches."""

    name = "triton"

    def supports(self, request: AttentionRequest) -> str | None:
        if reason := flash_attention_2(request):
            return reason
        if support.triton is None:
            return "triton is not installed"
        if "attention" in support.switched_off():
            return "is switched off by STEPVAR_KERNELS_OFF"
        if request.head_dim > _WIDEST:
            return f"takes head dims up to {_WIDEST}, not {request.head_dim}"
        if request.ragged or request.layout != "padded":
            return "takes rows of equal length and padded keys"
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
        k, v = kv.k, kv.v
        if not readable(k, v):
            k, v = k.contiguous(), v.contiguous()
        return attention(q_THD.contiguous(), k, v, kv.max_seqlen, scale)
