"""The blocks as twelve launches each, from the kernels of ``infinity/ops/fused``.

Computes what ``block.py`` defines, in the same precision: fp32 stream, norms and modulation, matrix
products in the weights' dtype or, on request, in fp8 with a factor per row of both operands.

Shape legend: T tokens of all rows end to end, b rows, C width, H heads, K head dim.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Float, Int32
from torch import Tensor
from torch.nn import functional as F

from infinity.ops.attention import KeyValues
from infinity.ops.fused.quantise import quantise
from infinity.ops.fused.residual_norm import (
    Affine,
    Branch,
    Chosen,
    Quantised,
    RowsOf,
    residual_norm,
)
from infinity.ops.fused.rotate import Phases, Slots, rotate_and_cache
from infinity.ops.fused.small_attention import MOST, small_attention
from infinity.ops.fused.support import usable
from infinity.ops.fused.text_attention import largest_values, text_attention
from infinity.policy import Branch as BranchName
from infinity.tokens import PackedTokens
from infinity.transformer.block import (
    BRANCHES,
    GATE_FFN,
    GATE_SA,
    SCALE_FFN,
    SCALE_SA,
    SHIFT_FFN,
    SHIFT_SA,
)
from infinity.transformer.fused_weights import FusedLayer
from infinity.transformer.model import InfinityTransformer, TextConditioning

_TEXT_STEP = 64
_FP8_TOKENS = 512
"""Fewer tokens are multiplied in the weights' dtype, which is as fast there (H200); cuBLASLt has no
fp8 product with a factor per row for some of those shapes."""

Hear = Callable[[int, BranchName, Tensor], None]
"""``(layer, branch, (T, C))``: told what a branch adds to the stream, gate included, fp32."""


def text_room(text_rows: int, prompts: int) -> int:
    """Packed text rows that are computed for so many: a multiple of 64 per prompt.

    Prompts of similar length then share shapes, and with them recordings and roundings.
    """
    step = _TEXT_STEP * prompts
    return -(-text_rows // step) * step


@dataclass(frozen=True)
class FusedText:
    """What fused blocks read of the text, for the rows that run.

    Attributes:
        keys_values: of all prompts' rows, ``(room, 2, H, K)`` per layer.
        cu_seqlens: row boundaries in ``keys_values``; need not start at 0.
        modulation: ``(layers, b, 6, C)``, fp32.
        longest: no row's text is longer, on the host.
        limits: of every row the largest magnitude among its text's values, where products run in
            fp8.
    """

    keys_values: list[Tensor]
    cu_seqlens: Int32[Tensor, " b1"]
    modulation: Float[Tensor, "layers b 6 width"]
    longest: int
    limits: Float[Tensor, "layers b"] | None = None

    def of_rows(self, start: int, stop: int) -> "FusedText":
        """Rows ``[start, stop)`` as views."""
        return FusedText(
            self.keys_values,
            self.cu_seqlens[start : stop + 1],
            self.modulation[:, start:stop],
            self.longest,
            None if self.limits is None else self.limits[:, start:stop],
        )


@dataclass(frozen=True)
class Surroundings:
    """What a block needs beside its tokens, the same for all layers of a layout.

    Attributes:
        rows, phases: of the tokens.
        tokens: their layout; its ``x`` is not read.
        reserve: ``layer → (slots of the new keys and values, everything the queries see)``.
        attend: self-attention of ``(T, H, K)`` queries.
        text: of the rows at hand.
    """

    rows: RowsOf
    phases: Phases
    tokens: PackedTokens
    reserve: Callable[[int], tuple[Slots, KeyValues]]
    attend: Callable[[Tensor, KeyValues], Tensor]
    text: FusedText


class FusedBlocks:
    """All blocks of a model in fused form; shares the model's weights.

    Args:
        model: its parameters must not be replaced afterwards.
        fp8: run the large products of every block in fp8; needs compute capability 9.0.
    """

    def __init__(self, model: InfinityTransformer, *, fp8: bool = False) -> None:
        blocks = list(model.layers())
        with torch.no_grad():
            self.layers = [FusedLayer(block, fp8) for block in blocks]
            self.tables = torch.stack([block.ada_gss[0].float() for block in blocks])
        self.fp8 = fp8
        self.dtype = blocks[0].sa.mat_qkv.weight.dtype

    def text(self, text: TextConditioning) -> FusedText:
        """The text of a call as the blocks read it: their own keys, values and adaLN parameters.

        What lies beyond the text's rows in ``keys_values`` stands for nothing.
        """
        context = text.context
        beyond = text_room(len(context), len(text.lengths)) - len(context)
        context = F.pad(context.to(self.dtype), (0, 0, 0, beyond))
        keys_values = [
            layer.text_kv(context).unflatten(-1, (2, layer.heads, layer.head_dim))
            for layer in self.layers
        ]
        limits = largest_values(keys_values, text.cu_seqlens) if self.fp8 else None
        modulation = self.tables + text.shared
        return FusedText(keys_values, text.cu_seqlens, modulation, text.max_seqlen, limits)

    def run(
        self,
        x: Float[Tensor, "total width"],
        layers: range,
        around: Surroundings,
        hear: Hear | None = None,
    ) -> Float[Tensor, "total width"]:
        """The stream after ``layers``; ``x`` is left as it is.

        Args:
            hear: told of every branch, once the next one reads the stream.
        """
        stream, waiting, done = x, None, None
        for step in (*product(layers, BRANCHES), None):
            # The stream is ours to overwrite as soon as one branch has been added to it.
            out = stream if stream is not x else None
            heard = None if hear is None or waiting is None else torch.empty_like(x)
            stream, h = self._normed(step, stream, waiting, around, out=out, heard=heard)
            if hear is not None and done is not None and heard is not None:
                hear(*done, heard)
            if step is not None:
                waiting, done = self._computed(step, h, around), step
        return stream

    def output(
        self,
        branch: BranchName,
        index: int,
        x: Float[Tensor, "all width"],
        around: Surroundings,
        chosen: Chosen | None = None,
    ) -> Branch:
        """What one branch of layer ``index`` makes of the stream, its gate still to be applied.

        Args:
            chosen: the tokens of ``x`` that it computes; None: all of them.
        """
        step = index, branch
        return self._computed(step, self._normed(step, x, None, around, chosen=chosen)[1], around)

    def _computed(
        self, step: tuple[int, BranchName], h: Tensor | Quantised | None, around: Surroundings
    ) -> Branch:
        index, branch = step
        return Branch(self._branch(branch, index, h, around), self._gate(branch, index, around))

    def _normed(
        self,
        step: tuple[int, BranchName] | None,
        x: Tensor,
        waiting: Branch | None,
        around: Surroundings,
        *,
        out: Tensor | None = None,
        chosen: Chosen | None = None,
        heard: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | Quantised | None]:
        """The stream with ``waiting`` added, and what ``step`` reads of it, if there is one."""
        tokens = len(x) if chosen is None else len(chosen.positions)
        return residual_norm(
            x,
            around.rows,
            None if step is None else self._affine(*step, around),
            waiting,
            eps=self.layers[0].eps,
            dtype=self.dtype,
            quantise=step is not None and self.fp8 and tokens >= _FP8_TOKENS,
            out=out,
            chosen=chosen,
            heard=heard,
        )

    def _affine(self, index: int, branch: BranchName, around: Surroundings) -> Affine:
        mod = around.text.modulation[index]
        if branch == "cross_attention":
            return self.layers[index].text_norm
        if branch == "self_attention":
            return Affine(mod[:, SCALE_SA], mod[:, SHIFT_SA])
        return Affine(mod[:, SCALE_FFN], mod[:, SHIFT_FFN])

    def _gate(self, branch: BranchName, index: int, around: Surroundings) -> Tensor | None:
        if branch == "cross_attention":
            return None
        return around.text.modulation[index][:, GATE_SA if branch == "self_attention" else GATE_FFN]

    def _branch(
        self, branch: BranchName, index: int, h: Tensor | Quantised | None, around: Surroundings
    ) -> Tensor:
        layer = self.layers[index]
        assert h is not None
        if branch == "self_attention":
            qkv = layer.qkv(h).unflatten(-1, (3, layer.heads, layer.head_dim))
            slots, seen = around.reserve(index)
            per_row = around.rows.per_row
            if (
                seen.uniform
                and around.rows.ids is None
                and per_row <= MOST
                and usable(qkv, "small_attention")
            ):
                out = small_attention(qkv, layer.head_scales, around.phases, per_row, slots)
                return layer.proj(out.flatten(1))
            q = rotate_and_cache(qkv, layer.head_scales, around.phases, around.rows, slots)
            out = around.attend(q, seen).flatten(1)
            return layer.proj(quantise(out) if isinstance(h, Quantised) else out)
        if branch == "cross_attention":
            q = layer.text_q(h).unflatten(-1, (layer.heads, layer.head_dim))
            limits = around.text.limits if isinstance(h, Quantised) else None
            attended = text_attention(
                q,
                around.text.keys_values[index],
                around.tokens.cu_seqlens,
                around.text.cu_seqlens,
                around.tokens.max_seqlen,
                layer.head_dim**-0.5,
                None if limits is None else limits[index],
                longest=around.text.longest,
            )
            return layer.text_proj(
                attended if isinstance(attended, Quantised) else attended.flatten(1)
            )
        if isinstance(h, Tensor):
            return layer.down(layer.up.gelu(h))
        return layer.down(quantise(layer.up(h), gelu=True))
