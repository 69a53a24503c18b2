"""Reference backend: torch's ``scaled_dot_product_attention``, on any device and in any dtype.

Uniform rows are dense views and cost no copy; on Hopper and newer cuDNN's kernel, the fastest dense
one measured, is tried first. Ragged rows are padded and masked: correct everywhere, fast nowhere.
"""

import contextlib
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from infinity.ops.attention.base import AttentionRequest, KeyValues, pad, row_index

_CUDNN_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]

_CUDNN_MIN_QUERIES = 64
"""Below, torch chooses: cuDNN refuses one query on one key and plans anew for every shape."""


@lru_cache
def _prefers_cudnn(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    return (
        device.type == "cuda"
        and dtype in (torch.float16, torch.bfloat16)
        and head_dim % 8 == 0
        and head_dim <= 128
        and torch.cuda.get_device_capability(device) >= (9, 0)
    )


class SdpaAttention:
    """Padded SDPA; defines what every other backend must compute."""

    name = "sdpa"

    def supports(self, request: AttentionRequest) -> str | None:
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
        rows = len(cu_seqlens_q) - 1
        if uniform_q:
            q = q_THD.view(rows, max_seqlen_q, *q_THD.shape[1:])
        else:
            q, _ = pad(q_THD, cu_seqlens_q, max_seqlen_q)
        k, v, mask = _dense_keys(kv, rows)
        cudnn = (
            mask is None
            and max_seqlen_q >= _CUDNN_MIN_QUERIES
            and _prefers_cudnn(q.device, q.dtype, q.shape[-1])
        )
        with sdpa_kernel(_CUDNN_FIRST, set_priority=True) if cudnn else contextlib.nullcontext():
            out = F.scaled_dot_product_attention(
                q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask, scale=scale
            ).transpose(1, 2)
        if uniform_q:
            return out.reshape(q_THD.shape)
        row, place = row_index(cu_seqlens_q, len(q_THD))
        return out[row, place]


def _dense_keys(kv: KeyValues, rows: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keys and values ``(b, L, H, D)``, and the mask ``(b, 1, 1, L)`` that ragged rows need."""
    if kv.cu_seqlens is None:
        k, v = kv.k[:, : kv.max_seqlen], kv.v[:, : kv.max_seqlen]
        if kv.uniform:
            return k, v, None
        assert kv.seqused is not None
        place = torch.arange(kv.max_seqlen, device=k.device, dtype=torch.int32)
        return k, v, (place < kv.seqused[:, None])[:, None, None]
    if kv.uniform:
        shape = (rows, kv.max_seqlen, *kv.k.shape[1:])
        return kv.k.view(shape), kv.v.view(shape), None
    k, valid = pad(kv.k, kv.cu_seqlens, kv.max_seqlen)
    v, _ = pad(kv.v, kv.cu_seqlens, kv.max_seqlen)
    return k, v, valid[:, None, None]
