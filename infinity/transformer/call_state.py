"""What a generation call remembers between scales: the guidance rows that still run, their cached
keys and values, and their text.

Shape legend: B images, b rows (conditional half first), T packed total, H heads, K head dim.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from infinity.ops.attention import KeyValues
from infinity.ops.fused.rotate import Phases
from infinity.policy import Rows
from infinity.schedule import ScaleSchedule
from infinity.timing import NO_TIMER, StageTimer
from infinity.tokens import PackedTokens
from infinity.transformer.block import Block
from infinity.transformer.cache import LayerCache, forked_caches, stacked_caches
from infinity.transformer.fused import FusedBlocks, FusedText
from infinity.transformer.guidance import Guidance
from infinity.transformer.layout import TokenLayout
from infinity.transformer.model import InfinityTransformer, TextConditioning
from infinity.transformer.rope import rope_table

CacheMemory = Callable[[str, tuple[int, ...], torch.dtype], Tensor]
"""``(name, shape, dtype) → finite tensor``: where the caches of a call live. What it gives under a
name is the call's until it ends.
"""


@cache
def _rope_on(schedule: ScaleSchedule, head_dim: int, device: torch.device) -> Tensor:
    """Kept for good, at most 60 schedules: recorded calls read a table where it lies."""
    return rope_table(schedule, head_dim).to(device)


class CallState:
    """One generation call on a transformer's blocks.

    Args:
        model: the transformer.
        text: conditioning of all rows, conditional half first.
        schedule: the grids of the call.
        images: B; ``text`` has B rows, or 2B with guidance.
        guidance: where the halves meet.
        cached_tokens: upper bound of cached tokens per scale; the last scale's entry is never
            allocated.
        attention: backend name, or "auto".
        timer: hears the end of every stage.
        fused: the blocks in fused form; None runs them as ``block.py`` reads.
        memory: where the caches of fused blocks live; None allocates.

    Attributes:
        rows: the guidance rows that run from here on.
        uncond_depth: leading layers in which the unconditional half lives.
        caches: per layer.
        text_kv: keys and values of the text per layer, where the blocks run unfused.
        fused_text: what fused blocks read of the text.
    """

    def __init__(
        self,
        model: InfinityTransformer,
        text: TextConditioning,
        schedule: ScaleSchedule,
        *,
        images: int,
        guidance: Guidance,
        cached_tokens: tuple[int, ...],
        attention: str = "auto",
        timer: StageTimer = NO_TIMER,
        fused: FusedBlocks | None = None,
        memory: CacheMemory | None = None,
    ) -> None:
        self.model, self.text, self.schedule, self.images = model, text, schedule, images
        self.guidance, self.attention, self.timer, self.fused = guidance, attention, timer, fused
        self.blocks: list[Block] = list(model.layers())
        self.rows: Rows = "both" if len(text.lengths) > images else "cond"
        self.rope_table = _rope_on(schedule, model.config.head_dim, model.device)
        self.uncond_depth = guidance.unconditional_depth(len(self.blocks))
        self.caches: list[LayerCache]
        self.text_kv: list[KeyValues] = []
        self.fused_text: FusedText | None = None
        capacity = sum(cached_tokens[:-1])
        if fused is not None:
            self.caches = self._stacked(fused, capacity, memory or self._allocate)
            self.fused_text = fused.text(text)
            self._fused_head = model.head_modulation(text.sos)
            return
        dtype = self.blocks[0].sa.mat_qkv.weight.dtype
        heads, head_dim = model.config.heads, model.config.head_dim
        self.caches = []
        for layer, block in enumerate(self.blocks):
            rows = len(text.lengths) if layer < self.uncond_depth else images
            self.caches.append(LayerCache.new(rows, capacity, heads, head_dim, dtype, model.device))
            self.text_kv.append(_text_keys_values(block, text, 0, rows))

    def _allocate(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.model.device)

    def _stacked(self, fused: FusedBlocks, capacity: int, memory: CacheMemory) -> list[LayerCache]:
        """Caches in two pieces of memory: layers that run all rows, layers that run one half."""
        config, tail = self.model.config, max(self.schedule.tokens_per_scale)
        caches: list[LayerCache] = []
        halves = (
            ("all rows", self.uncond_depth, len(self.text.lengths)),
            ("conditional rows", config.depth - self.uncond_depth, self.images),
        )
        for name, layers, rows in halves:
            if layers:
                entries = rows * (layers * capacity + tail)
                shape = (2, entries, config.heads, config.head_dim)
                piece = memory(name, shape, fused.dtype)
                caches += stacked_caches(layers, rows, capacity, tail, piece)
        return caches

    def fork(self, timer: StageTimer) -> "CallState":
        """Another state of the same call, which goes on by itself in the same memory."""
        other = copy.copy(self)
        other.timer, other.text_kv = timer, list(self.text_kv)
        other.caches = forked_caches(self.caches)
        return other

    def keep_half(self, rows: Rows) -> None:
        """Continues with one guidance half only.

        Args:
            rows: ``cond`` or ``uncond``.

        Raises:
            ValueError: the half was dropped before, or dies inside the stack (hidden-layer
                guidance).
        """
        if self.rows != "both":
            raise ValueError(f"rows {rows!r} asked for, but only {self.rows!r} rows are left")
        if rows == "uncond" and self.uncond_depth < len(self.blocks):
            raise ValueError(
                "rows 'uncond' needs guidance on logits: that half ends inside the stack"
            )
        start = 0 if rows == "cond" else self.images
        stop = start + self.images
        for layer in range(self.uncond_depth):
            self.caches[layer].keep_rows(start, stop)
            if self.fused is None:
                self.text_kv[layer] = _text_keys_values(self.blocks[layer], self.text, start, stop)
        if self.fused_text is not None:
            self.fused_text = self.fused_text.of_rows(start, stop)
        self.rows = rows

    def active(self, per_row: Tensor) -> Tensor:
        """The entries of the rows that still run, from one entry per original row."""
        if self.rows == "both":
            return per_row
        start = self.images if self.rows == "uncond" else 0
        return per_row[start : start + self.images]

    def head_modulation(self, rows: int) -> Float[Tensor, "rows width2"]:
        """Scale and shift of the head's norm for the first of the rows that still run."""
        if self.fused is not None:
            return self.active(self._fused_head)[:rows]
        return self.model.head_modulation(self.active(self.text.sos)[:rows])

    def layout(self, si: int, tokens: PackedTokens, *, pruned: bool = False) -> TokenLayout:
        """``tokens`` of scale ``si`` with what blocks read of their layout."""
        row_ids = None if tokens.uniform else tokens.row_ids()
        cos, sin = self.rope_table
        phases = Phases(cos, sin, tokens.indices.contiguous(), self.schedule.offsets[si])
        layout = TokenLayout(tokens, phases, row_ids, pruned=pruned)
        return layout if self.fused is not None else replace(layout, rope=layout.gathered_rope())


def _text_keys_values(block: Block, text: TextConditioning, start: int, stop: int) -> KeyValues:
    first, last = sum(text.lengths[:start]), sum(text.lengths[:stop])
    k, v = block.ca.keys_values(text.context[first:last]).unbind(1)
    lengths = text.lengths[start:stop]
    cu_seqlens = text.cu_seqlens[start : stop + 1] - first
    return KeyValues(k, v, cu_seqlens, None, max(lengths), len(set(lengths)) == 1)
