"""One transformer block (spec: infinity-transformer §5). Attribute names are the checkpoints' wire
format.

Shape legend: R×M the token axes: rows × tokens when every row keeps equally many, 1 × packed total
otherwise; C width, H heads, K head dim. Attention itself is passed in, so that the same block
serves cached generation, pruned generation and teacher-forced training.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from infinity.config import TransformerConfig
from infinity.policy import Branch
from infinity.transformer.rope import apply_rope

_MAX_LOG_SCALE = math.log(100)

BRANCHES: tuple[Branch, ...] = ("self_attention", "cross_attention", "ffn")

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(q, k, v)``, each ``(R, M, H, K)`` → ``(R, M, H, K)``: self-attention over whatever the caller
lets tokens see.
"""

AttendText = Callable[[Tensor], Tensor]
"""``q (R, M, H, K)`` → ``(R, M, H, K)``: attention to the prompt's rows."""


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """``layer(x)`` in the dtype of the layer's weights."""
    return layer(x.to(layer.weight.dtype))


def head_scales(logarithms: Float[Tensor, "1 heads 1 1"]) -> Float[Tensor, "heads 1"]:
    """Factor on the unit queries of every head, fp32, bounded as the checkpoints expect."""
    return logarithms.float().clamp_max(_MAX_LOG_SCALE).exp().view(-1, 1)


@dataclass(frozen=True)
class Rope:
    """Cosines and sines of the tokens at hand, ``(R, M, K/2)`` each, or broadcastable."""

    cos: Tensor
    sin: Tensor


GATE_SA, GATE_FFN, SCALE_SA, SCALE_FFN, SHIFT_SA, SHIFT_FFN = range(6)
"""Places of the adaLN parameters in a block's table, in the order of :class:`Modulation`."""


@dataclass(frozen=True)
class Modulation:
    """The six adaLN parameters of a block, each broadcastable to ``(R, M, C)``, fp32."""

    gate_sa: Tensor
    gate_ffn: Tensor
    scale_sa: Tensor
    scale_ffn: Tensor
    shift_sa: Tensor
    shift_ffn: Tensor


class SelfAttention(nn.Module):
    """Cosine self-attention: unit queries and keys, a learned scale per head, rotary phases after
    normalisation.
    """

    zero_k_bias: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.heads, self.head_dim = config.heads, config.head_dim
        self.mat_qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("zero_k_bias", torch.zeros(width))
        self.scale_mul_1H11 = nn.Parameter(torch.full((1, self.heads, 1, 1), math.log(4.0)))
        self.proj = nn.Linear(width, width)

    def project(self, h: Float[Tensor, "r m width"], rope: Rope) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, ready for a dot product of scale 1; in the compute dtype."""
        weight = self.mat_qkv.weight
        bias = torch.cat([self.q_bias, self.zero_k_bias, self.v_bias]).to(weight.dtype)
        qkv = F.linear(h.to(weight.dtype), weight, bias).unflatten(
            -1, (3, self.heads, self.head_dim)
        )
        q, k, v = qkv.unbind(-3)
        scale = head_scales(self.scale_mul_1H11)
        q = apply_rope(F.normalize(q.float(), dim=-1, eps=1e-12) * scale, rope.cos, rope.sin)
        k = apply_rope(F.normalize(k.float(), dim=-1, eps=1e-12), rope.cos, rope.sin)
        return q.to(v.dtype), k.to(v.dtype), v

    def forward(self, h: Float[Tensor, "r m width"], rope: Rope, attend: Attend) -> Tensor:
        return linear(self.proj, attend(*self.project(h, rope)).flatten(-2))


class CrossAttention(nn.Module):
    """Attention from tokens to their prompt's rows; keys and values are computed once per
    prompt.
    """

    zero_k_bias: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.heads, self.head_dim = config.heads, config.head_dim
        self.mat_q = nn.Linear(width, width)
        self.mat_kv = nn.Linear(width, 2 * width, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("zero_k_bias", torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def keys_values(self, text: Float[Tensor, "n width"]) -> Float[Tensor, "n 2 heads dim"]:
        weight = self.mat_kv.weight
        bias = torch.cat([self.zero_k_bias, self.v_bias]).to(weight.dtype)
        kv = F.linear(text.to(weight.dtype), weight, bias)
        return kv.unflatten(-1, (2, self.heads, self.head_dim))

    def forward(self, h: Float[Tensor, "r m width"], attend_text: AttendText) -> Tensor:
        q = linear(self.mat_q, h).unflatten(-1, (self.heads, self.head_dim))
        return linear(self.proj, attend_text(q).flatten(-2))


class FFN(nn.Module):
    """Two-layer perceptron with tanh-approximated GELU."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.ffn_width)
        self.fc2 = nn.Linear(config.ffn_width, config.width)

    def forward(self, h: Float[Tensor, "r m width"]) -> Tensor:
        return self.fc2(F.gelu(linear(self.fc1, h), approximate="tanh"))


class Block(nn.Module):
    """Self-attention, cross-attention and FFN, each added to the residual stream; the first and
    last are gated.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.eps = config.norm_eps
        self.sa = SelfAttention(config)
        self.ca = CrossAttention(config)
        self.ffn = FFN(config)
        self.ca_norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.ada_gss = nn.Parameter(torch.zeros(1, 1, 6, width))

    def modulation(self, shared: Float[Tensor, "b 6 width"]) -> Float[Tensor, "b 6 width"]:
        """This block's adaLN parameters: its own table plus the shared projection of the prompt."""
        return self.ada_gss[0].float() + shared

    def norm(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        h = F.layer_norm(x.float(), x.shape[-1:], eps=self.eps)
        return h * (1 + scale) + shift

    def self_attention(self, x: Tensor, mod: Modulation, rope: Rope, attend: Attend) -> Tensor:
        """The gated self-attention branch of stream ``x``."""
        return self.sa(self.norm(x, mod.scale_sa, mod.shift_sa), rope, attend).float() * mod.gate_sa

    def cross_attention(self, x: Tensor, attend_text: AttendText) -> Tensor:
        """The cross-attention branch of stream ``x``."""
        return self.ca(self.ca_norm(x.float()), attend_text).float()

    def feed_forward(self, x: Tensor, mod: Modulation) -> Tensor:
        """The gated FFN branch of stream ``x``."""
        return self.ffn(self.norm(x, mod.scale_ffn, mod.shift_ffn)).float() * mod.gate_ffn

    def forward(
        self, x: Tensor, mod: Modulation, rope: Rope, attend: Attend, attend_text: AttendText
    ) -> Tensor:
        x = x + self.self_attention(x, mod, rope, attend)
        x = x + self.cross_attention(x, attend_text)
        return x + self.feed_forward(x, mod)
