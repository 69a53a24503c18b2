"""SparseVAR: tokens that a late layer hardly changed at the previous scale are left out.

Shape legend: B images, b rows, N positions of a scale, M kept per row, C width.
"""

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Lt
from jaxtyping import Bool
from torch import Tensor

from infinity.errors import UserError
from infinity.policy import (
    Branch,
    Event,
    PolicyRequest,
    PolicyRun,
    ScalePlan,
    ScaleView,
)
from infinity.schedule import Grid
from infinity.tokens import KeepSet
from stepvar_patch.cost import ScaleLoad
from stepvar_patch.policies.ruled import RuledRun
from stepvar_patch.policies.selection import BALANCED
from stepvar_patch.rules import Scales
from stepvar_patch.scores.layer_change import layer_change, resize_scores
from stepvar_patch.select import spread_ties, top
from stepvar_patch.upsample import code_restore, nearest_source, stream_restore


@dataclass(frozen=True, kw_only=True)
class SparseVARPolicy:
    """Keeps the tokens that one layer changed most at the previous scale, and a lattice of anchors.

    Attributes:
        scales: rule per scale; the anchors count towards its ``keep_ratio``. No ratio is published;
            the default is StepVAR's, for equal speed.
        layer: the layer whose change is read, as a fraction of the depth. Published: one that
            attends to high frequencies, without its number.
        anchor_stride: every n-th row and column of the grid holds an anchor; 0 = no anchors.
        restore: what pruned positions receive. Published: ``nearest_state``; the others are ours,
            see ``stepvar_patch.upsample``.

    Source: SparseVAR, spec pruning-methods §3. Ours, where nothing is published: bilinear resize of
    the change map, conditional rows decide for both, the nearest kept token fills the gaps.
    """

    replayable: ClassVar[bool] = True
    kind: Literal["sparsevar"] = "sparsevar"
    scales: Scales = field(default_factory=lambda: dict(BALANCED))
    layer: Annotated[float, Ge(0), Lt(1)] = 0.75
    anchor_stride: Annotated[int, Ge(0)] = 4
    restore: Literal["nearest_state", "nearest_change", "zero_change", "code_copy", "code_zero"] = (
        "nearest_state"
    )

    @property
    def name(self) -> str:
        return self.kind

    def start(self, request: PolicyRequest) -> PolicyRun:
        """A run for one call.

        Raises:
            UserError: a rule matches no scale, prunes the first executed scale, or keeps fewer
                tokens than there are anchors.
        """
        return SparseVARRun(request, self)


class SparseVARRun(RuledRun):
    """Remembers the change map of the last executed scale."""

    def __init__(self, request: PolicyRequest, policy: SparseVARPolicy) -> None:
        super().__init__(request, policy.scales, whole_stack=True)
        self.layer = int(policy.layer * request.layers)
        self.stride = policy.anchor_stride
        self.restore = stream_restore(policy.restore)
        self.restore_codes = code_restore(policy.restore)
        self.sources = {self.executed_before(si): si for si in self.pruned}
        self.change: Tensor | None = None
        self.grid: Grid = request.schedule.grids[0]
        self.keep: KeepSet | None = None
        for si in self.pruned:
            self._check(si)

    def _check(self, si: int) -> None:
        h, w = self.request.schedule.grids[si]
        if self.executed_before(si) is None:
            raise UserError(
                f"sparsevar: scales prunes scale {si}, before which no scale runs; allowed: scales "
                "after an executed one, whose change map selects the tokens"
            )
        anchors = int(self._anchors((h, w)).sum())
        if self.kept(si) < anchors:
            raise UserError(
                f"sparsevar: scales.{si - len(self.request.schedule)}.keep_ratio is "
                f"{self.rules[si].keep_ratio}, fewer tokens than the {anchors} anchors of its "
                f"{h}×{w} grid; allowed: at least {anchors / (h * w):.4g}, or a larger "
                "anchor_stride"
            )

    def _anchors(self, grid: Grid, device: torch.device | None = None) -> Bool[Tensor, " n"]:
        """Which positions hold an anchor, found on the device, so that a call can be recorded."""
        on_line = []
        for side in grid:
            place = torch.arange(side, device=device) - min(self.stride // 2, side - 1)
            on_line.append(place % self.stride == 0 if self.stride else place < -side)
        rows, columns = on_line
        return (rows[:, None] & columns).flatten()

    def plan_scale(self, si: int, view: ScaleView) -> ScalePlan:
        self.events = frozenset[Event]({"layer"} if si in self.sources else ())
        if not self.rule(si).run:
            return self.plan(si)
        grid, self.grid, self.keep = self.grid, view.grid, None
        if si not in self.pruned:
            return self.plan(si)
        assert self.change is not None
        scores = spread_ties(resize_scores(self.change, grid, view.grid), view.grid)
        anchors = self._anchors(view.grid, scores.device)
        scores = scores.masked_fill(anchors, torch.finfo(scores.dtype).max)
        self.keep = top(scores, self.kept(si), view.grid)
        return self.plan(si, keep=self.keep, restore=self.restore, restore_codes=self.restore_codes)

    def load(self, si: int) -> ScaleLoad:
        return replace(super().load(si), head_on_kept=self.restore_codes is not None)

    def after(self, event: Event, si: int, layer: int, branch: Branch | None, data: Any) -> None:
        """Takes the change map of the images' conditional rows (or of the rows that are left)."""
        if layer != self.layer:
            return
        before, after = (x[: self.request.images] for x in data)
        change = layer_change(before, after)
        if self.keep is not None:
            change = change.gather(1, nearest_source(self.keep, self.grid))
        self.change = change
