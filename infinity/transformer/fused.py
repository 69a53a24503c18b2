"""The blocks as twelve launches each, from the kernels of ``infinity/ops/fused``.

Computes what ``block.py`` defines, in the same precision: fp32 stream, norms and modulation, matrix
products in the weights' dtype or, on request, the four large ones in fp8 with a factor per row of
both operands.

Shape legend: T tokens of all rows end to end, b rows, C width, H heads, K head dim.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int32
from torch import Tensor, nn
from torch.nn import functional as F

from infinity.ops.attention import KeyValues
from infinity.ops.fused.quantise import quantise
from infinity.ops.fused.residual_norm import (
    Affine,
    Branch,
    Quantised,
    RowsOf,
    quantise_rows,
    residual_norm,
)
from infinity.ops.fused.rotate import Phases, Slots, rotate_and_cache
from infinity.ops.fused.text_attention import text_attention
from infinity.policy import Branch as BranchName
from infinity.tokens import PackedTokens
from infinity.transformer.block import Block, head_scales
from infinity.transformer.model import InfinityTransformer

GATE_SA, GATE_FFN, SCALE_SA, SCALE_FFN, SHIFT_SA, SHIFT_FFN = range(6)


_log = logging.getLogger(__name__)
_TEXT_STEP = 64
_FP8_TOKENS = 512
"""Fewer tokens are multiplied in the weights' dtype, which is as fast there (H200); cuBLASLt has no
fp8 product with a factor per row for some of those shapes."""


def text_room(text_rows: int, prompts: int) -> int:
    """Packed text rows that are computed for so many: a multiple of 64 per prompt.

    Prompts of similar length then share shapes, and with them recordings and roundings.
    """
    step = _TEXT_STEP * prompts
    return -(-text_rows // step) * step


class _Product:
    """A matrix product with bias, in the weight's dtype or in fp8."""

    def __init__(self, weight: Tensor, bias: Tensor, fp8: bool) -> None:
        self.weight, self.bias = weight, bias.to(weight.dtype)
        self.small = quantise_rows(weight) if fp8 else None
        self._unsupported: set[int] = set()

    def __call__(self, h: Tensor | Quantised) -> Tensor:
        if isinstance(h, Tensor):
            return F.linear(h, self.weight, self.bias)
        assert self.small is not None
        if len(h.values) not in self._unsupported:
            try:
                return self._scaled(h, self.small)
            except RuntimeError as error:
                if "NOT_SUPPORTED" not in str(error):
                    raise
                self._unsupported.add(len(h.values))
                shape = (len(h.values), *self.weight.shape)
                _log.warning("fp8: cuBLASLt has no product of %s; it runs in bf16", shape)
        exact = h.values.to(self.weight.dtype) * h.scale[:, None].to(self.weight.dtype)
        return F.linear(exact, self.weight, self.bias)

    def _scaled(self, h: Quantised, small: Quantised) -> Tensor:
        return torch._scaled_mm(
            h.values,
            small.values.t(),
            scale_a=h.scale[:, None],
            scale_b=small.scale[None],
            bias=self.bias,
            out_dtype=self.weight.dtype,
            use_fast_accum=True,
        )

    def gelu(self, h: Tensor) -> Tensor:
        """The tanh-approximated GELU of the product, in its epilogue where the device has one."""
        if h.is_cuda:
            return torch._addmm_activation(self.bias, h, self.weight.t(), use_gelu=True)
        return F.gelu(self(h), approximate="tanh")


class _Layer:
    """A block's parameters in the form that the kernels read."""

    def __init__(self, block: Block, fp8: bool) -> None:
        sa, ca, ffn = block.sa, block.ca, block.ffn
        self.heads, self.head_dim, self.eps = sa.heads, sa.head_dim, block.eps
        bias = torch.cat([sa.q_bias, sa.zero_k_bias, sa.v_bias])
        self.qkv = _Product(sa.mat_qkv.weight, bias, fp8)
        self.head_scales = head_scales(sa.scale_mul_1H11).flatten().contiguous()
        self.proj = _linear(sa.proj, fp8)
        self.text_norm = Affine(block.ca_norm.weight.float(), block.ca_norm.bias.float())
        self.text_q, self.text_proj = _linear(ca.mat_q, False), _linear(ca.proj, False)
        self.text_kv = _Product(ca.mat_kv.weight, torch.cat([ca.zero_k_bias, ca.v_bias]), False)
        self.up, self.down = _linear(ffn.fc1, fp8), _linear(ffn.fc2, fp8)


def _linear(layer: nn.Linear, fp8: bool) -> _Product:
    return _Product(layer.weight, layer.bias, fp8)


@dataclass(frozen=True)
class Surroundings:
    """What a block needs beside its tokens, the same for all layers of a layout.

    Attributes:
        rows, phases: of the tokens.
        tokens: their layout; its ``x`` is not read.
        reserve: ``layer → (slots of the new keys and values, everything the queries see)``.
        attend: self-attention of ``(T, H, K)`` queries.
        text_kv: keys and values of the text, per layer.
        cu_seqlens_text: row boundaries in ``text_kv``.
        modulation: ``(layers, b, 6, C)``, fp32.
    """

    rows: RowsOf
    phases: Phases
    tokens: PackedTokens
    reserve: Callable[[int], tuple[Slots, KeyValues]]
    attend: Callable[[Tensor, KeyValues], Tensor]
    text_kv: list[Tensor]
    cu_seqlens_text: Int32[Tensor, " b1"]
    modulation: Float[Tensor, "layers b 6 width"]


class FusedBlocks:
    """All blocks of a model in fused form; shares the model's weights.

    Args:
        model: its parameters must not be replaced afterwards.
        fp8: run the four large products of every block in fp8; needs compute capability 8.9.
    """

    def __init__(self, model: InfinityTransformer, *, fp8: bool = False) -> None:
        blocks = list(model.layers())
        with torch.no_grad():
            self.layers = [_Layer(block, fp8) for block in blocks]
            self.tables = torch.stack([block.ada_gss[0].float() for block in blocks])
        self.fp8 = fp8
        self.dtype = blocks[0].sa.mat_qkv.weight.dtype

    def modulation(self, shared: Float[Tensor, "b 6 width"]) -> Float[Tensor, "layers b 6 width"]:
        """All blocks' adaLN parameters."""
        return self.tables + shared

    def text_keys_values(self, context: Float[Tensor, "n width"], prompts: int) -> list[Tensor]:
        """``(room, 2, H, K)`` per layer; what lies beyond the ``n`` rows stands for nothing."""
        beyond = text_room(len(context), prompts) - len(context)
        context = F.pad(context.to(self.dtype), (0, 0, 0, beyond))
        return [
            layer.text_kv(context).unflatten(-1, (2, layer.heads, layer.head_dim))
            for layer in self.layers
        ]

    def run(
        self, x: Float[Tensor, "total width"], layers: range, around: Surroundings
    ) -> Float[Tensor, "total width"]:
        """The stream after ``layers``; ``x`` is left as it is."""
        stream, waiting = x, None
        for index in layers:
            for branch in ("self_attention", "cross_attention", "ffn"):
                # The stream is ours to overwrite as soon as one branch has been added to it.
                out = stream if stream is not x else None
                stream, h = self._normed(branch, index, stream, waiting, around, out)
                y = self._branch(branch, index, h, around)
                waiting = Branch(y, self._gate(branch, index, around))
        out = stream if stream is not x else None
        return residual_norm(stream, around.rows, None, waiting, out=out)[0]

    def change(
        self, branch: BranchName, index: int, x: Float[Tensor, "total width"], around: Surroundings
    ) -> Float[Tensor, "total width"]:
        """What one branch of layer ``index`` adds to the stream, gate included; fp32."""
        y = self._branch(branch, index, self._normed(branch, index, x, None, around)[1], around)
        gate = self._gate(branch, index, around)
        if gate is None:
            return y.float()
        if around.rows.ids is not None:
            return y.float() * gate[around.rows.ids]
        return (y.float().unflatten(0, (len(gate), -1)) * gate[:, None]).flatten(0, 1)

    def _normed(
        self,
        branch: BranchName,
        index: int,
        x: Tensor,
        waiting: Branch | None,
        around: Surroundings,
        out: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | Quantised | None]:
        layer, mod = self.layers[index], around.modulation[index]
        affine = {
            "self_attention": Affine(mod[:, SCALE_SA], mod[:, SHIFT_SA]),
            "cross_attention": layer.text_norm,
            "ffn": Affine(mod[:, SCALE_FFN], mod[:, SHIFT_FFN]),
        }[branch]
        small = self._small(len(x)) and branch != "cross_attention"
        return residual_norm(
            x,
            around.rows,
            affine,
            waiting,
            eps=layer.eps,
            dtype=self.dtype,
            quantise=small,
            out=out,
        )

    def _small(self, total: int) -> bool:
        return self.fp8 and total >= _FP8_TOKENS

    def _gate(self, branch: BranchName, index: int, around: Surroundings) -> Tensor | None:
        if branch == "cross_attention":
            return None
        return around.modulation[index][:, GATE_SA if branch == "self_attention" else GATE_FFN]

    def _branch(
        self, branch: BranchName, index: int, h: Tensor | Quantised | None, around: Surroundings
    ) -> Tensor:
        layer = self.layers[index]
        assert h is not None
        if branch == "self_attention":
            qkv = layer.qkv(h).unflatten(-1, (3, layer.heads, layer.head_dim))
            slots, seen = around.reserve(index)
            q = rotate_and_cache(qkv, layer.head_scales, around.phases, around.rows, slots)
            out = around.attend(q, seen).flatten(1)
            return layer.proj(quantise(out) if isinstance(h, Quantised) else out)
        if branch == "cross_attention":
            q = layer.text_q(h).unflatten(-1, (layer.heads, layer.head_dim))
            out = text_attention(
                q,
                around.text_kv[index],
                around.tokens.cu_seqlens,
                around.cu_seqlens_text,
                around.tokens.max_seqlen,
                layer.head_dim**-0.5,
            )
            return layer.text_proj(out.flatten(1))
        if isinstance(h, Tensor):
            return layer.down(layer.up.gelu(h))
        return layer.down(quantise(layer.up(h), gelu=True))
