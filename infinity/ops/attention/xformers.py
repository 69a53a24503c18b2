"""xformers' block-diagonal attention (extra ``xformers``)."""

import torch
from jaxtyping import Float, Int32
from torch import Tensor
from xformers.ops import fmha
from xformers.ops.fmha.attn_bias import (
    BlockDiagonalMask,
    BlockDiagonalPaddedKeysMask,
    _PaddedSeqLenInfo,
    _SeqLenInfo,
)

from infinity.ops.attention.base import AttentionRequest, KeyValues, flash_attention_2


def _rows(boundaries: Int32[Tensor, " b1"], max_seqlen: int) -> _SeqLenInfo:
    """Row boundaries as xformers wants them.

    Its public constructors take lengths as host lists, which would cost a device sync per call; the
    host copies, which the kernel does not read, are left at zero.
    """
    return _SeqLenInfo(
        seqstart=boundaries,
        max_seqlen=max_seqlen,
        min_seqlen=0,
        seqstart_py=[0] * len(boundaries),
    )


def _padded_rows(seqused: Int32[Tensor, " b"], capacity: int, max_seqlen: int) -> _PaddedSeqLenInfo:
    rows = len(seqused)
    return _PaddedSeqLenInfo(
        seqstart=torch.arange(rows + 1, device=seqused.device, dtype=torch.int32) * capacity,
        max_seqlen=max_seqlen,
        min_seqlen=0,
        seqstart_py=list(range(0, rows * capacity + 1, capacity)),
        seqlen=seqused,
        seqlen_py=[0] * rows,
        padding=capacity,
    )


class XformersAttention:
    """The FlashAttention-2 kernel in xformers' wrapping; tested against the fields of 0.0.35."""

    name = "xformers"

    def supports(self, request: AttentionRequest) -> str | None:
        if reason := flash_attention_2(request):
            return reason
        if not fmha.flash.FwOp.is_available():
            return f"has no flash kernel built for torch {torch.__version__}"
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
        queries = _rows(cu_seqlens_q, max_seqlen_q)
        if kv.cu_seqlens is not None:
            k, v = kv.k, kv.v
            bias = BlockDiagonalMask(queries, _rows(kv.cu_seqlens, kv.max_seqlen))
        else:
            assert kv.seqused is not None
            keys = _padded_rows(kv.seqused, kv.k.shape[1], kv.max_seqlen)
            k, v = kv.k.flatten(0, 1), kv.v.flatten(0, 1)
            bias = BlockDiagonalPaddedKeysMask(queries, keys)
        out = fmha.memory_efficient_attention_forward(
            q_THD[None], k[None], v[None], bias, scale=scale, op=fmha.flash.FwOp
        )
        return out[0]
