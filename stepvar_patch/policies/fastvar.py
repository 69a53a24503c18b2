"""FastVAR: tokens near the mean skip a branch and take its output from an earlier scale instead.

Shape legend: B images, b rows, N positions, C width.
"""

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le
from torch import Tensor

from infinity.errors import UserError
from infinity.ops.fused.spread import area_filled, places_of
from infinity.policy import (
    Branch,
    BranchPlan,
    Event,
    PolicyRequest,
    PolicyRun,
    RestoreContext,
    Rows,
    ScalePlan,
    ScaleView,
)
from infinity.tokens import PackedTokens
from stepvar_patch.cost import ScaleLoad
from stepvar_patch.policies.ruled import RuledRun, layer_range
from stepvar_patch.rules import ScaleRule, Scales
from stepvar_patch.scores.mean_distance import mean_distance
from stepvar_patch.select import top


@dataclass(frozen=True, kw_only=True)
class FastVARPolicy:
    """Prunes in every branch of the late scales and leaves out the last ones.

    Attributes:
        scales: rule per scale; ``run=False`` leaves a scale out. The default is the published
            setting for Infinity; the published 8B setting keeps 0.6 and 0.4 instead.
        layers: half-open range of pruned layers as fractions of the depth; published: 3 … 27 of 32.

    Source: FastVAR (arXiv 2503.23367) and its released settings, spec pruning-methods §2.
    Deviation: kept tokens stay in spatial order, which attention does not see.
    """

    replayable: ClassVar[bool] = True
    kind: Literal["fastvar"] = "fastvar"
    scales: Scales = field(
        default_factory=lambda: {
            "-4": ScaleRule(keep_ratio=0.6),
            "-3": ScaleRule(keep_ratio=0.5),
            "-2": ScaleRule(run=False),
            "-1": ScaleRule(run=False),
        }
    )
    layers: tuple[Annotated[float, Ge(0), Le(1)], Annotated[float, Ge(0), Le(1)]] = (
        3 / 32,
        28 / 32,
    )

    @property
    def name(self) -> str:
        return self.kind

    def start(self, request: PolicyRequest) -> PolicyRun:
        """A run for one call.

        Raises:
            UserError: a rule matches no scale, no dense scale comes before the first pruned one, or
                the layer range is empty.
        """
        return FastVARRun(request, self)


class FastVARRun(RuledRun):
    """Remembers every pruned layer's three branch outputs at the last scale before pruning.

    Attributes:
        cached_scale: the scale whose branch outputs are remembered; None if nothing is pruned.
    """

    def __init__(self, request: PolicyRequest, policy: FastVARPolicy) -> None:
        super().__init__(request, policy.scales, whole_stack=False)
        self.layers = layer_range(policy.layers, request.layers)
        self.outputs: dict[tuple[int, Branch], Tensor] = {}
        self.rows: Rows = "both"
        first = min(self.pruned, default=None)
        self.cached_scale = None if first is None else self.executed_before(first)
        if first is not None and self.cached_scale is None:
            raise UserError(
                f"fastvar: scales prunes scale {first}, before which no scale runs; allowed: "
                "scales after an executed one, whose branch outputs fill the pruned positions"
            )

    def load(self, si: int) -> ScaleLoad:
        load = super().load(si)
        return replace(load, layers=self.layers) if si in self.pruned else load

    def plan_scale(self, si: int, view: ScaleView) -> ScalePlan:
        self.events = frozenset[Event]({"branch"} if si == self.cached_scale else ())
        self.rows = self.rows_at(si, view)
        if si not in self.pruned:
            return self.plan(si)
        return self.plan(si, inside="branch", layers=(self.layers.start, self.layers.stop))

    def plan_branch(self, si: int, layer: int, branch: Branch, x: Tensor) -> BranchPlan | None:
        if layer not in self.layers:
            return None
        grid = self.request.schedule.grids[si]
        return BranchPlan(top(mean_distance(x, grid), self.kept(si), grid), self.fill, whole=True)

    def after(self, event: Event, si: int, layer: int, branch: Branch | None, data: Any) -> None:
        if branch is not None and layer in self.layers:
            self.outputs[layer, branch] = data

    def fill(self, fresh: PackedTokens, context: RestoreContext) -> Tensor:
        """The stream plus the fresh branch outputs over the remembered ones, resized to this
        grid.
        """
        assert self.cached_scale is not None
        old = self.outputs[context.layer, context.branch]
        rows = context.before.shape[0]
        if len(old) != rows:
            start = self.request.images if self.rows == "uncond" else 0
            old = old[start : start + rows]
        grid = self.request.schedule.grids[self.cached_scale]
        before, fine, gate, places = context.before, context.grid, context.gate, fresh.places
        if places is None:
            places = places_of(fresh.indices.view(rows, -1), before.shape[1])
        return area_filled(before, fresh.x, places, old, fine, grid, gate)
