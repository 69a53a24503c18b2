"""One block at one scale: attention bound to the caches, and the policy asked where its plan says.

Shape legend: b rows, N positions of the scale, M kept per row, T packed total, R×M token axes of a
block (see ``block.py``), H heads, K head dim, C width.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from infinity.ops.attention import AttentionRequest, KeyValues, select
from infinity.ops.fused.residual_norm import Chosen
from infinity.ops.fused.rotate import Slots
from infinity.ops.fused.text_attention import text_attention
from infinity.policy import Branch, BranchPlan, Inside, PolicyRun, RestoreContext, ScalePlan
from infinity.tokens import KeepSet, PackedTokens, pack, pack_all, places_only
from infinity.transformer.block import BRANCHES, Attend, AttendText, Block, Modulation
from infinity.transformer.call_state import CallState
from infinity.transformer.fused import FusedBlocks, Surroundings
from infinity.transformer.layout import TokenLayout
from infinity.transformer.rope import apply_rope


@dataclass(frozen=True)
class LayerRun:
    """One layer at one scale.

    Attributes:
        call: caches and text.
        si, layer: which.
        plan: of the scale.
        policy: asked inside the layer if the plan says so, told about events it subscribed to.
        last: no later scale reads what is computed here, so nothing is cached.
    """

    call: CallState
    si: int
    layer: int
    plan: ScalePlan
    policy: PolicyRun
    last: bool

    @property
    def block(self) -> Block:
        return self.call.blocks[self.layer]

    @property
    def writes(self) -> bool:
        """Whether keys and values are cached."""
        return not self.last and self.plan.kv_write != "none"

    @property
    def inside(self) -> Inside | None:
        """Where the policy prunes inside this layer."""
        start, stop = self.plan.layers or (0, len(self.call.blocks))
        return self.plan.inside if start <= self.layer < stop else None

    def propagates(self, layout: TokenLayout) -> bool:
        """Whether every position caches keys and values, computed or not."""
        return self.plan.kv_source is not None and layout.pruned

    def surroundings(self, layout: TokenLayout) -> Surroundings:
        """What fused blocks need beside the tokens of ``layout``."""
        call, tokens = self.call, layout.tokens
        assert call.fused_text is not None

        def reserve(layer: int) -> tuple[Slots, KeyValues]:
            return call.caches[layer].reserve(tokens, self.writes, self.last)

        def attend(q: Tensor, kv: KeyValues) -> Tensor:
            return _attention(q, tokens, kv, 1.0, call.attention)

        text = call.fused_text.of_rows(0, tokens.rows)
        return Surroundings(layout.rows, layout.phases, tokens, reserve, attend, text)

    def run(self, layout: TokenLayout) -> PackedTokens:
        """The tokens of ``layout`` after the layer."""
        tokens, events = layout.tokens, self.policy.events
        if self.inside is None and self.call.fused is not None and "branch" in events:
            after = self._heard(layout, self.call.fused)
        elif self.inside == "branch" or "branch" in events:
            after = self._branch_by_branch(layout)
        elif self.inside == "layer" and (
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

    def _whole(self, layout: TokenLayout) -> Tensor:
        """``(T, C)`` after all three branches."""
        if self.call.fused is not None and not self.propagates(layout):
            layers = range(self.layer, self.layer + 1)
            return self.call.fused.run(layout.tokens.x, layers, self.surroundings(layout))
        x = layout.spread(layout.tokens.x)
        mod, rope = self._modulation(layout), layout.gathered_rope()
        attend, attend_text = self._attend(layout), self._attend_text(layout)
        return self.block(x, mod, rope, attend, attend_text).flatten(0, 1)

    def _heard(self, layout: TokenLayout, fused: FusedBlocks) -> Tensor:
        """``(T, C)`` after all three branches, the policy told what each one adds."""

        def hear(layer: int, branch: Branch, change: Tensor) -> None:
            self.policy.after("branch", self.si, layer, branch, layout.spread(change))

        layers = range(self.layer, self.layer + 1)
        return fused.run(layout.tokens.x, layers, self.surroundings(layout), hear)

    def _branch_by_branch(self, layout: TokenLayout) -> Tensor:
        """``(T, C)`` after all three branches, the policy asked or told at each."""
        x = layout.spread(layout.tokens.x)
        for branch in BRANCHES:
            chosen = None
            if self.inside == "branch":
                chosen = self.policy.plan_branch(self.si, self.layer, branch, x)
            if chosen is None:
                change = self._branch(branch, layout, x)
                after = x + change
            else:
                restored = self._restored(branch, chosen, x)
                after = restored if chosen.whole else x + restored
            if "branch" in self.policy.events:
                if chosen is not None:
                    change = after - x if chosen.whole else restored
                self.policy.after("branch", self.si, self.layer, branch, change)
            x = after
        return x.flatten(0, 1)

    def _restored(self, branch: Branch, chosen: BranchPlan, x: Tensor) -> Tensor:
        """What ``chosen.restore`` makes of the branch's output for the chosen tokens."""
        context, fused = self._context(x, branch), self.call.fused
        if fused is None or chosen.gather is not None or not chosen.keep.uniform:
            inner = self._chosen(chosen, x)
            fresh = self._branch(branch, inner, inner.spread(inner.tokens.x)).flatten(0, 1)
            return chosen.restore(inner.tokens.with_x(fresh), context)
        inner = self.call.layout(self.si, places_only(x, self._of_rows(chosen.keep, x)))
        positions = Chosen(inner.phases.positions, x.shape[1])
        around = self.surroundings(inner)
        out = fused.output(branch, self.layer, x.flatten(0, 1), around, positions)
        if chosen.whole:
            return chosen.restore(inner.tokens.with_x(out.out), replace(context, gate=out.gate))
        return chosen.restore(inner.tokens.with_x(out.gated(around.rows)), context)

    def _branch(self, branch: Branch, layout: TokenLayout, x: Tensor) -> Tensor:
        """What one branch adds to the stream ``x (R, M, C)``."""
        if self.call.fused is not None:
            around = self.surroundings(layout)
            out = self.call.fused.output(branch, self.layer, x.flatten(0, 1), around)
            return out.gated(around.rows).view(x.shape)
        mod = self._modulation(layout)
        if branch == "self_attention":
            return self.block.self_attention(x, mod, layout.gathered_rope(), self._attend(layout))
        if branch == "cross_attention":
            return self.block.cross_attention(x, self._attend_text(layout))
        return self.block.feed_forward(x, mod)

    def _chosen(self, chosen: BranchPlan, x: Tensor) -> TokenLayout:
        keep = self._of_rows(chosen.keep, x)
        tokens = pack(x, keep) if chosen.gather is None else chosen.gather(x, keep)
        return self.call.layout(self.si, tokens)

    def _of_rows(self, keep: KeepSet, x: Tensor) -> KeepSet:
        """``keep`` with a set for every row of ``x``."""
        return keep.tiled(x.shape[0] // len(keep.counts))

    def _context(self, before: Tensor, branch: Branch) -> RestoreContext:
        return RestoreContext(
            before, self.call.schedule.grids[self.si], self.si, self.layer, branch
        )

    def _modulation(self, layout: TokenLayout) -> Modulation:
        shared = self.call.active(self.call.text.shared)[: layout.tokens.rows]
        parameters = self.block.modulation(shared).unbind(1)
        return Modulation(*(layout.per_token(p) for p in parameters))

    def _attend(self, layout: TokenLayout) -> Attend:
        tokens, call = layout.tokens, self.call

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            k, v = k.flatten(0, 1), v.flatten(0, 1)
            kv_tokens = tokens
            if self.propagates(layout):
                k, v, kv_tokens = self._propagate(k, v, tokens, layout)
            kv = call.caches[self.layer].extend(k, v, kv_tokens, self.writes)
            return _attention(q.flatten(0, 1), tokens, kv, 1.0, call.attention).view(q.shape)

        return attend

    def _propagate(
        self, k: Tensor, v: Tensor, tokens: PackedTokens, layout: TokenLayout
    ) -> tuple[Tensor, Tensor, PackedTokens]:
        """Keys and values for every position, from the kept token each one names, turned to its
        own phase.
        """
        source = self.plan.kv_source
        assert source is not None
        n = source.shape[1]
        source = source.repeat(tokens.rows // source.shape[0], 1)
        flat = (source + tokens.cu_seqlens[:-1, None].long()).reshape(-1)
        start = self.call.schedule.offsets[self.si]
        own = self.call.rope_table[:, start : start + n].repeat(1, tokens.rows, 1)
        rope = layout.gathered_rope()
        cos_s, sin_s = (t.flatten(0, 1)[flat] for t in (rope.cos, rope.sin))
        cos_o, sin_o = own
        turned = apply_rope(
            k[flat], cos_o * cos_s + sin_o * sin_s, sin_o * cos_s - cos_o * sin_s
        ).to(k.dtype)
        return turned, v[flat], pack_all(v[flat].flatten(1).unflatten(0, (tokens.rows, n)))

    def _attend_text(self, layout: TokenLayout) -> AttendText:
        scale, tokens, call = self.block.ca.head_dim**-0.5, layout.tokens, self.call

        def attend_text(q: Tensor) -> Tensor:
            packed = q.flatten(0, 1)
            if call.fused_text is not None:
                text = call.fused_text.of_rows(0, tokens.rows)
                kv = text.keys_values[self.layer]
                boundaries = tokens.cu_seqlens, text.cu_seqlens
                out = text_attention(
                    packed, kv, *boundaries, tokens.max_seqlen, scale, longest=text.longest
                )
                assert isinstance(out, Tensor)
            else:
                text_kv = call.text_kv[self.layer]
                out = _attention(packed, tokens, text_kv, scale, call.attention)
            return out.view(q.shape)

        return attend_text


def _attention(q: Tensor, tokens: PackedTokens, kv: KeyValues, scale: float, name: str) -> Tensor:
    ragged = not (tokens.uniform and kv.uniform)
    request = AttentionRequest.on(
        q.device,
        q.dtype,
        q.shape[-1],
        ragged=ragged,
        layout=kv.layout,
        queries=len(q),
        keys=kv.max_seqlen,
    )
    return select(name, request)(
        q,
        kv,
        cu_seqlens_q=tokens.cu_seqlens,
        max_seqlen_q=tokens.max_seqlen,
        uniform_q=tokens.uniform,
        scale=scale,
    )
