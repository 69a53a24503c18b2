"""Runs the block stack over one scale at a time: pruned ranges of layers, hidden-layer guidance.

Shape legend: B images, b rows (conditional half first), N positions of the scale, M kept per row,
T packed total, C width.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from infinity.policy import PolicyRun, RestoreContext, Rows, ScalePlan
from infinity.tokens import KeepSet, PackedTokens, pack, pack_all
from infinity.transformer.call_state import CallState
from infinity.transformer.guidance import guide
from infinity.transformer.layer import LayerRun
from infinity.transformer.layout import TokenLayout


@dataclass(frozen=True)
class StackOutput:
    """The stream after the last block: dense unless the plan makes codes dense instead."""

    tokens: PackedTokens
    rows: Rows


class BlockStack:
    """The blocks of a transformer, for one generation call.

    Args:
        call: its rows, caches and text.
    """

    def __init__(self, call: CallState) -> None:
        self.call = call
        self.depth = len(call.blocks)

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
        call, timer = self.call, self.call.timer
        first_pruned, end_pruned = self._pruned_range(plan)
        layout = call.layout(si, pack_all(x))
        before = x
        timer.mark("pack", si)
        asked = plan.layers if plan.inside is not None and plan.layers is not None else ()
        for layers in self._segments(first_pruned, end_pruned, *asked):
            if layers.start == call.uncond_depth and call.rows == "both":
                conditional = layout.tokens.slice_rows(0, call.images)
                layout = call.layout(si, conditional, pruned=layout.pruned)
                before = before[: call.images]
            if layers.start == first_pruned and plan.keep is not None:
                timer.mark("blocks", si)
                before = layout.spread(layout.tokens.x)
                kept = pack(before, self._keep_of_rows(plan.keep, before.shape[0]))
                layout = call.layout(si, kept, pruned=True)
                timer.mark("pack", si)
            layout = self._through(layers, si, layout, plan, policy, last)
            layer = layers.stop - 1
            if layer in call.guidance.layers and guidance_scale != 1 and call.rows == "both":
                layout = self._guided(layout, layer, guidance_scale)
            if layers.stop == end_pruned and plan.restore is not None:
                timer.mark("blocks", si)
                context = RestoreContext(before, call.schedule.grids[si], si, layer, "layer")
                layout = call.layout(si, pack_all(plan.restore(layout.tokens, context)))
                timer.mark("restore", si)
        timer.mark("blocks", si)
        ended = call.rows == "both" and call.uncond_depth < self.depth
        return StackOutput(layout.tokens, "cond" if ended else call.rows)

    def _segments(self, *changes: int) -> list[range]:
        """The layers, cut wherever something happens between two of them."""
        cuts = {0, *changes, self.call.uncond_depth, self.depth}
        cuts |= {layer + 1 for layer in self.call.guidance.layers}
        ends = sorted(cut for cut in cuts if cut <= self.depth)
        return [range(*pair) for pair in pairwise(ends)]

    def _through(
        self,
        layers: range,
        si: int,
        layout: TokenLayout,
        plan: ScalePlan,
        policy: PolicyRun,
        last: bool,
    ) -> TokenLayout:
        """``layout`` after ``layers``."""
        fused = self.call.fused
        first = LayerRun(self.call, si, layers.start, plan, policy, last)
        asked = first.inside is not None or policy.events & {"branch", "layer"}
        if fused is not None and not asked and not first.propagates(layout):
            x = fused.run(layout.tokens.x, layers, first.surroundings(layout))
            return replace(layout, tokens=layout.tokens.with_x(x))
        for layer in layers:
            layout = replace(layout, tokens=replace(first, layer=layer).run(layout))
        return layout

    def _pruned_range(self, plan: ScalePlan) -> tuple[int, int]:
        if plan.keep is None:
            return self.depth, self.depth
        start, end = plan.layers or (0, self.depth)
        if not 0 <= start < end <= self.depth:
            raise ValueError(
                f"layers [{start}, {end}) must lie inside the {self.depth} layers of the model"
            )
        if plan.restore_codes is not None and end != self.depth:
            raise ValueError("restore_codes needs the pruned layers to reach the last layer")
        return start, end

    def _keep_of_rows(self, keep: KeepSet, rows: int) -> KeepSet:
        images = self.call.images
        if len(keep.counts) == images:
            return keep.tiled(rows // images)
        if len(keep.counts) == rows:
            return keep
        raise ValueError(
            f"keep sets for {len(keep.counts)} rows; expected {images} images or {rows} rows"
        )

    def _guided(self, layout: TokenLayout, layer: int, scale: float) -> TokenLayout:
        """``layout`` with the halves combined; nobody reads the second where it ends here."""
        call, tokens = self.call, layout.tokens
        if tokens.counts[: call.images] != tokens.counts[call.images :]:
            raise ValueError("hidden-layer guidance needs the same keep set in both guidance rows")
        cond, uncond = tokens.x.chunk(2)
        mixed = guide(cond, uncond, scale)
        ends_here = layer + 1 == call.uncond_depth and not call.guidance.logits
        both = torch.cat([mixed, uncond if ends_here else mixed])
        return replace(layout, tokens=tokens.with_x(both))
