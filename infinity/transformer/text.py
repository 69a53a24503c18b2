"""From text features to what the blocks read: the pooled start vector and the projected rows (spec
§4.4).
"""

import math

import torch
from jaxtyping import Bool, Float, Int32
from torch import Tensor, nn
from torch.nn import functional as F

from infinity.config import TransformerConfig


class TextNorm(nn.Module):
    """Root-mean-square norm with gain, in fp32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, rows: Float[Tensor, "n width"]) -> Float[Tensor, "n width"]:
        rows = rows.float()
        return rows * torch.rsqrt(rows.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class _PoolAttention(nn.Module):
    zero_k_bias: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, heads = config.width, config.pool_heads
        self.heads, self.head_dim = heads, width // heads
        self.mat_q = nn.Parameter(torch.zeros(1, heads, self.head_dim))
        self.mat_kv = nn.Linear(config.text_width, 2 * width, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("zero_k_bias", torch.zeros(width))
        self.proj = nn.Linear(width, width)


class TextPool(nn.Module):
    """Attention pooling: one learned query per head summarises each prompt's rows."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.ca = _PoolAttention(config)

    def keys_values(self, rows: Float[Tensor, "*rows text"]) -> Float[Tensor, "*rows 2 heads dim"]:
        ca = self.ca
        weight = ca.mat_kv.weight
        bias = torch.cat([ca.zero_k_bias, ca.v_bias]).to(weight.dtype)
        return F.linear(rows.to(weight.dtype), weight, bias).unflatten(
            -1, (2, ca.heads, ca.head_dim)
        )

    def pool(
        self, kv: Float[Tensor, "b n 2 heads dim"], valid: Bool[Tensor, "b n"]
    ) -> Float[Tensor, "b width"]:
        """Pooled vector per prompt of padded rows; padding contributes exactly zero."""
        ca = self.ca
        k, v = kv.unbind(2)
        scores = torch.einsum("hk,bnhk->bhn", ca.mat_q[0].float(), k.float())
        scores = scores / math.sqrt(ca.head_dim)
        weights = scores.masked_fill(~valid[:, None], float("-inf")).softmax(-1)
        pooled = torch.einsum("bhn,bnhk->bhk", weights.float(), v.float()).flatten(1)
        return ca.proj(pooled.to(ca.proj.weight.dtype))

    def forward(
        self, rows: Float[Tensor, "n text"], cu_seqlens: Int32[Tensor, " b1"], max_seqlen: int
    ) -> Float[Tensor, "b width"]:
        """Pooled vector per prompt, ``(b, C)``, of packed rows."""
        kv = self.keys_values(rows)
        starts, lengths = cu_seqlens[:-1].long(), cu_seqlens.diff().long()
        slots = torch.arange(max_seqlen, device=rows.device)
        valid = slots < lengths[:, None]
        gather = (starts[:, None] + slots).where(valid, starts[:, None])
        return self.pool(kv[gather], valid)
