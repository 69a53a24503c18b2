"""Runs the block stack over one scale at a time: cached attention, pruned tokens, hidden-layer
guidance.

Shape legend: B images, b rows (conditional half first), N positions of the scale, M kept per row,
T packed total, R×M token axes of a block (see ``block.py``), H heads, K head dim, C width.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from infinity.ops.attention import AttentionRequest, KeyValues, select
from infinity.ops.fused.residual_norm import RowsOf
from infinity.ops.fused.rotate import Phases, Slots
from infinity.ops.fused.text_attention import text_attention
from infinity.policy import Branch, BranchPlan, PolicyRun, RestoreContext, Rows, ScalePlan
from infinity.schedule import ScaleSchedule
from infinity.timing import NO_TIMER, StageTimer
from infinity.tokens import KeepSet, PackedTokens, pack, pack_all
from infinity.transformer.block import Attend, AttendText, Block, Modulation, Rope
from infinity.transformer.cache import LayerCache, stacked_caches
from infinity.transformer.fused import FusedBlocks, Surroundings
from infinity.transformer.model import InfinityTransformer, TextConditioning
from infinity.transformer.rope import apply_rope, rope_table


@dataclass(frozen=True)
class Guidance:
    """Where conditional and unconditional halves are combined (spec §7.1).

    Attributes:
        layers: 0-based blocks after which hidden states are combined.
        logits: whether logits are combined.
    """

    layers: frozenset[int]
    logits: bool

    @property
    def unconditional_layers(self) -> int | None:
        """Leading layers in which the unconditional half can still influence the picture; None =
        all.
        """
        return None if self.logits else max(self.layers, default=-1) + 1


@dataclass(frozen=True)
class StackOutput:
    """The stream after the last block: dense unless the plan makes codes dense instead."""

    tokens: PackedTokens
    rows: Rows


CacheMemory = Callable[[str, tuple[int, ...], torch.dtype], Tensor]
"""``(name, shape, dtype) → finite tensor``: where the caches of a call live. What it gives under a
name is the stack's until the call ends.
"""


@lru_cache(maxsize=32)
def _rope_on(schedule: ScaleSchedule, head_dim: int, device: torch.device) -> Tensor:
    return rope_table(schedule, head_dim).to(device)


@dataclass(frozen=True)
class _Layout:
    """Everything about the tokens at hand that every block reads, computed once per layout.

    ``rope`` is there where the blocks run unfused; the kernels read the table by ``phases``.
    """

    tokens: PackedTokens
    phases: Phases
    row_ids: Tensor | None
    rope: Rope | None = None
    pruned: bool = False

    @property
    def rows(self) -> RowsOf:
        return RowsOf(self.tokens.max_seqlen, self.row_ids)

    def turned(self) -> Rope:
        """Rotary phases gathered per token."""
        if self.rope is not None:
            return self.rope
        place = self.phases.offset + self.phases.positions
        return Rope(self.spread(self.phases.cos[place]), self.spread(self.phases.sin[place]))

    def spread(self, x: Tensor) -> Tensor:
        """``(T, …)`` as ``(R, M, …)``."""
        if self.row_ids is None:
            return x.unflatten(0, (self.tokens.rows, self.tokens.max_seqlen))
        return x[None]

    def per_token(self, rows: Float[Tensor, "b width"]) -> Tensor:
        """One vector per row, broadcastable to ``(R, M, C)``."""
        return rows[:, None] if self.row_ids is None else rows[self.row_ids][None]


class BlockStack:
    """The blocks of a transformer with their caches, for one generation call.

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
        self.timer, self.fused = timer, fused
        self.model, self.schedule, self.images, self.guidance = model, schedule, images, guidance
        self.blocks: list[Block] = list(model.layers())
        self.attention = attention
        self.rows: Rows = "both" if len(text.lengths) > images else "cond"
        self.text = text
        self.rope_table = _rope_on(schedule, model.config.head_dim, model.device)
        live = guidance.unconditional_layers
        self.uncond_depth = len(self.blocks) if live is None else live
        capacity = sum(cached_tokens[:-1])
        if fused is not None:
            self.caches = self._stacked(fused, capacity, memory or self._allocate)
            self.modulation = fused.modulation(text.shared)
            self.fused_text_kv = fused.text_keys_values(text.context, len(text.lengths))
            self.cu_seqlens_text = text.cu_seqlens
            return
        dtype = self.blocks[0].sa.mat_qkv.weight.dtype
        heads, head_dim = model.config.heads, model.config.head_dim
        self.caches = []
        self.text_kv: list[KeyValues] = []
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

    def drop_rows(self, rows: Rows) -> None:
        """Continues with one guidance half only.

        Raises:
            ValueError: the half was dropped before, or dies inside the stack (hidden-layer
                guidance).
        """
        if rows in ("both", self.rows):
            if rows == "both" and self.rows != "both" and len(self.text.lengths) > self.images:
                raise ValueError(f"rows {rows!r} asked for, but only {self.rows!r} rows are left")
            return
        if self.rows != "both":
            raise ValueError(f"rows {rows!r} asked for, but only {self.rows!r} rows are left")
        if rows == "uncond" and self.uncond_depth < len(self.blocks):
            raise ValueError(
                "rows 'uncond' needs guidance on logits: that half ends inside the stack"
            )
        start = 0 if rows == "cond" else self.images
        for layer, cache in enumerate(self.caches):
            if layer < self.uncond_depth:
                cache.keep_rows(start, start + self.images)
                if self.fused is None:
                    self.text_kv[layer] = _text_keys_values(
                        self.blocks[layer], self.text, start, start + self.images
                    )
        if self.fused is not None:
            self.modulation = self.modulation[:, start : start + self.images]
            self.cu_seqlens_text = self.cu_seqlens_text[start : start + self.images + 1]
        self.rows = rows

    def active(self, per_row: Tensor) -> Tensor:
        """The entries of the rows that still run, from one entry per original row."""
        if self.rows == "both":
            return per_row
        start = self.images if self.rows == "uncond" else 0
        return per_row[start : start + self.images]

    def run(
        self,
        si: int,
        x: Float[Tensor, "b n width"],
        plan: ScalePlan,
        policy: PolicyRun,
        guidance_scale: float,
        last: bool,
    ) -> StackOutput:
        """Stream after all blocks at scale ``si``.

        Args:
            x: embedded input of the rows that still run.
            plan: what to compute.
            policy: asked inside the stack if the plan says so, told about events it subscribed to.
            guidance_scale: for hidden-layer guidance at this scale.
            last: nothing computed here is read by a later scale, so nothing is cached.

        Raises:
            ValueError: the plan contradicts itself or the guidance placement.
        """
        depth = len(self.blocks)
        first_pruned, end_pruned = self._pruned_range(plan)
        layout = self._layout(si, pack_all(x))
        before = x
        self.timer.mark("pack", si)
        for layers in self._segments(first_pruned, end_pruned):
            if layers.start == self.uncond_depth and self.rows == "both":
                pruned = layout.pruned
                layout = self._layout(si, layout.tokens.slice_rows(0, self.images))
                layout = replace(layout, pruned=pruned)
                before = before[: self.images]
            if layers.start == first_pruned and plan.keep is not None:
                self.timer.mark("blocks", si)
                before = layout.spread(layout.tokens.x)
                layout = self._layout(si, pack(before, self._keep_of_rows(plan, before.shape[0])))
                layout = replace(layout, pruned=True)
                self.timer.mark("pack", si)
            layout = self._through(layers, si, layout, plan, policy, last)
            layer = layers.stop - 1
            if layer in self.guidance.layers and guidance_scale != 1 and self.rows == "both":
                layout = self._guide(layout, layer, guidance_scale)
            if layers.stop == end_pruned and plan.restore is not None:
                self.timer.mark("blocks", si)
                context = RestoreContext(before, self.schedule.grids[si], si, layer, "layer")
                dense = plan.restore(layout.tokens, context)
                layout = self._layout(si, pack_all(dense))
                self.timer.mark("restore", si)
        self.timer.mark("blocks", si)
        rows: Rows = self.rows if self.uncond_depth == depth or self.rows != "both" else "cond"
        return StackOutput(layout.tokens, rows)

    def _segments(self, first_pruned: int, end_pruned: int) -> list[range]:
        """The layers, cut wherever something happens between two of them."""
        depth = len(self.blocks)
        cuts = {0, first_pruned, end_pruned, self.uncond_depth, depth}
        cuts |= {layer + 1 for layer in self.guidance.layers}
        ends = sorted(cut for cut in cuts if cut <= depth)
        return [range(*pair) for pair in pairwise(ends)]

    def _through(
        self,
        layers: range,
        si: int,
        layout: _Layout,
        plan: ScalePlan,
        policy: PolicyRun,
        last: bool,
    ) -> _Layout:
        """``layout`` after ``layers``."""
        sublayers = _Sublayers(self, si, layers.start, plan, policy, last)
        asked = plan.inside is not None or policy.events & {"branch", "layer"}
        if self.fused is not None and not asked and not sublayers.propagates(layout):
            x = self.fused.run(layout.tokens.x, layers, sublayers.surroundings(layout))
            return replace(layout, tokens=layout.tokens.with_x(x))
        for layer in layers:
            layout = replace(layout, tokens=replace(sublayers, layer=layer).run(layout))
        return layout

    def _pruned_range(self, plan: ScalePlan) -> tuple[int, int]:
        depth = len(self.blocks)
        if plan.keep is None:
            return depth, depth
        start, end = plan.layers or (0, depth)
        if not 0 <= start < end <= depth:
            raise ValueError(
                f"layers [{start}, {end}) must lie inside the {depth} layers of the model"
            )
        if plan.restore_codes is not None and end != depth:
            raise ValueError("restore_codes needs the pruned layers to reach the last layer")
        return start, end

    def _keep_of_rows(self, plan: ScalePlan, rows: int) -> KeepSet:
        keep = plan.keep
        assert keep is not None
        if len(keep.counts) == self.images:
            return keep.tiled(rows // self.images)
        if len(keep.counts) == rows:
            return keep
        raise ValueError(
            f"keep sets for {len(keep.counts)} rows; expected {self.images} images or {rows} rows"
        )

    def _layout(self, si: int, tokens: PackedTokens) -> _Layout:
        row_ids = None if tokens.uniform else tokens.row_ids()
        cos, sin = self.rope_table
        phases = Phases(cos, sin, tokens.indices.contiguous(), self.schedule.offsets[si])
        layout = _Layout(tokens, phases, row_ids)
        return layout if self.fused is not None else replace(layout, rope=layout.turned())

    def _guide(self, layout: _Layout, layer: int, scale: float) -> _Layout:
        tokens = layout.tokens
        if tokens.counts[: self.images] != tokens.counts[self.images :]:
            raise ValueError("hidden-layer guidance needs the same keep set in both guidance rows")
        cond, uncond = tokens.x.chunk(2)
        mixed = scale * cond + (1 - scale) * uncond
        if layer + 1 == self.uncond_depth and not self.guidance.logits:
            mixed = torch.cat([mixed, uncond])
        else:
            mixed = torch.cat([mixed, mixed])
        return replace(layout, tokens=tokens.with_x(mixed))


@dataclass(frozen=True)
class _Sublayers:
    """One block at one scale: binds attention to the caches, and asks the policy where the plan
    wants that.
    """

    stack: BlockStack
    si: int
    layer: int
    plan: ScalePlan
    policy: PolicyRun
    last: bool

    @property
    def block(self) -> Block:
        return self.stack.blocks[self.layer]

    @property
    def write(self) -> bool:
        return not self.last and self.plan.kv_write != "none"

    def propagates(self, layout: _Layout) -> bool:
        """Whether every position caches keys and values, computed or not."""
        return self.plan.kv_source is not None and layout.pruned

    def surroundings(self, layout: _Layout) -> Surroundings:
        """What fused blocks need beside the tokens of ``layout``."""
        stack, tokens = self.stack, layout.tokens

        def reserve(layer: int) -> tuple[Slots, KeyValues]:
            return stack.caches[layer].reserve(tokens, self.write, self.last)

        def attend(q: Tensor, kv: KeyValues) -> Tensor:
            return _attention(q, tokens, kv, 1.0, stack.attention)

        return Surroundings(
            layout.rows,
            layout.phases,
            tokens,
            reserve,
            attend,
            stack.fused_text_kv,
            stack.cu_seqlens_text[: tokens.rows + 1],
            stack.modulation[:, : tokens.rows],
        )

    def run(self, layout: _Layout) -> PackedTokens:
        tokens, events = layout.tokens, self.policy.events
        if self.plan.inside == "branch" or "branch" in events:
            after = self._branch_by_branch(layout)
        elif self.plan.inside == "layer" and (
            chosen := self.policy.plan_branch(self.si, self.layer, "layer", layout.spread(tokens.x))
        ):
            before = layout.spread(tokens.x)
            inner = self._chosen(chosen, before)
            out = inner.tokens.with_x(self._whole(inner))
            after = chosen.restore(out, self._context(before, "layer")).flatten(0, 1)
        else:
            after = self._whole(layout)
        if "layer" in events and layout.row_ids is None:
            pair = (layout.spread(tokens.x), layout.spread(after))
            self.policy.after("layer", self.si, self.layer, None, pair)
        return tokens.with_x(after)

    def _whole(self, layout: _Layout) -> Tensor:
        if self.stack.fused is not None and not self.propagates(layout):
            layers = range(self.layer, self.layer + 1)
            return self.stack.fused.run(layout.tokens.x, layers, self.surroundings(layout))
        x = layout.spread(layout.tokens.x)
        mod, rope = self._modulation(layout), layout.turned()
        attend, attend_text = self._attend(layout), self._attend_text(layout)
        return self.block(x, mod, rope, attend, attend_text).flatten(0, 1)

    def _branch_by_branch(self, layout: _Layout) -> Tensor:
        x = layout.spread(layout.tokens.x)
        branches: tuple[Branch, ...] = ("self_attention", "cross_attention", "ffn")
        for branch in branches:
            chosen = None
            if self.plan.inside == "branch":
                chosen = self.policy.plan_branch(self.si, self.layer, branch, x)
            if chosen is None:
                change = self._branch(branch, layout, x)
            else:
                inner = self._chosen(chosen, x)
                fresh = self._branch(branch, inner, inner.spread(inner.tokens.x))
                change = chosen.restore(
                    inner.tokens.with_x(fresh.flatten(0, 1)), self._context(x, branch)
                )
            if "branch" in self.policy.events:
                self.policy.after("branch", self.si, self.layer, branch, change)
            x = x + change
        return x.flatten(0, 1)

    def _branch(self, branch: Branch, layout: _Layout, x: Tensor) -> Tensor:
        if self.stack.fused is not None:
            around = self.surroundings(layout)
            change = self.stack.fused.change(branch, self.layer, x.flatten(0, 1), around)
            return change.view(x.shape)
        mod = self._modulation(layout)
        if branch == "self_attention":
            return self.block.self_attention(x, mod, layout.turned(), self._attend(layout))
        if branch == "cross_attention":
            return self.block.cross_attention(x, self._attend_text(layout))
        return self.block.feed_forward(x, mod)

    def _chosen(self, chosen: BranchPlan, x: Tensor) -> _Layout:
        keep = chosen.keep
        if len(keep.counts) != x.shape[0]:
            keep = keep.tiled(x.shape[0] // len(keep.counts))
        tokens = pack(x, keep) if chosen.gather is None else chosen.gather(x, keep)
        return self.stack._layout(self.si, tokens)

    def _context(self, before: Tensor, branch: Branch) -> RestoreContext:
        return RestoreContext(
            before, self.stack.schedule.grids[self.si], self.si, self.layer, branch
        )

    def _modulation(self, layout: _Layout) -> Modulation:
        shared = self.stack.active(self.stack.text.shared)[: layout.tokens.rows]
        parameters = self.block.modulation(shared).unbind(1)
        return Modulation(*(layout.per_token(p) for p in parameters))

    def _attend(self, layout: _Layout) -> Attend:
        tokens, stack = layout.tokens, self.stack

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            k, v = k.flatten(0, 1), v.flatten(0, 1)
            kv_tokens = tokens
            if self.propagates(layout):
                k, v, kv_tokens = self._propagate(k, v, tokens, layout)
            kv = stack.caches[self.layer].extend(k, v, kv_tokens, self.write)
            return _attention(q.flatten(0, 1), tokens, kv, 1.0, stack.attention).view(q.shape)

        return attend

    def _propagate(
        self, k: Tensor, v: Tensor, tokens: PackedTokens, layout: _Layout
    ) -> tuple[Tensor, Tensor, PackedTokens]:
        """Keys and values for every position, from the kept token each one names, turned to its
        own phase.
        """
        source = self.plan.kv_source
        assert source is not None
        n = source.shape[1]
        source = source.repeat(tokens.rows // source.shape[0], 1)
        flat = (source + tokens.cu_seqlens[:-1, None].long()).reshape(-1)
        start = self.stack.schedule.offsets[self.si]
        own = self.stack.rope_table[:, start : start + n].repeat(1, tokens.rows, 1)
        rope = layout.turned()
        cos_s, sin_s = (t.flatten(0, 1)[flat] for t in (rope.cos, rope.sin))
        cos_o, sin_o = own
        turned = apply_rope(
            k[flat], cos_o * cos_s + sin_o * sin_s, sin_o * cos_s - cos_o * sin_s
        ).to(k.dtype)
        return turned, v[flat], pack_all(v[flat].flatten(1).unflatten(0, (tokens.rows, n)))

    def _attend_text(self, layout: _Layout) -> AttendText:
        scale, tokens, stack = self.block.ca.head_dim**-0.5, layout.tokens, self.stack

        def attend_text(q: Tensor) -> Tensor:
            packed = q.flatten(0, 1)
            if stack.fused is not None:
                cu_seqlens = stack.cu_seqlens_text[: tokens.rows + 1]
                kv = stack.fused_text_kv[self.layer]
                out = text_attention(
                    packed, kv, tokens.cu_seqlens, cu_seqlens, tokens.max_seqlen, scale
                )
            else:
                text_kv = stack.text_kv[self.layer]
                out = _attention(packed, tokens, text_kv, scale, stack.attention)
            return out.view(q.shape)

        return attend_text


def _attention(q: Tensor, tokens: PackedTokens, kv: KeyValues, scale: float, name: str) -> Tensor:
    ragged = not (tokens.uniform and kv.uniform)
    request = AttentionRequest.on(q.device, q.dtype, q.shape[-1], ragged=ragged, layout=kv.layout)
    return select(name, request)(
        q,
        kv,
        cu_seqlens_q=tokens.cu_seqlens,
        max_seqlen_q=tokens.max_seqlen,
        uniform_q=tokens.uniform,
        scale=scale,
    )


def _text_keys_values(block: Block, text: TextConditioning, start: int, stop: int) -> KeyValues:
    first, last = sum(text.lengths[:start]), sum(text.lengths[:stop])
    k, v = block.ca.keys_values(text.context[first:last]).unbind(1)
    lengths = text.lengths[start:stop]
    cu_seqlens = text.cu_seqlens[start : stop + 1] - first
    return KeyValues(k, v, cu_seqlens, None, max(lengths), len(set(lengths)) == 1)
