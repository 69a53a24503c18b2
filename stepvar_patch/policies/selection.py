"""What all policies share that rank tokens by a score and copy the kept ones' results to the rest.

Shape legend: B images, b rows (conditional first), N positions of the scale, C width.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Le
from jaxtyping import Float
from torch import Tensor

from infinity.errors import Mistakes, collecting
from infinity.policy import (
    Branch,
    BranchPlan,
    PolicyRequest,
    PolicyRun,
    ScalePlan,
    ScaleView,
)
from infinity.schedule import Grid
from infinity.tokens import KeepSet
from stepvar_patch.cost import ScaleLoad
from stepvar_patch.policies.ruled import RuledRun, layer_range
from stepvar_patch.rules import ScaleRule, Scales
from stepvar_patch.select import cells, min_coverage, top
from stepvar_patch.upsample import Restoration, code_restore, nearest_source, stream_restore

Score = Callable[[Float[Tensor, "b n width"], int, Grid, int], Float[Tensor, "b n"]]
"""``(features, scale, grid, tokens to keep) → scores``, higher = keep."""

BALANCED: Scales = {
    "-4": ScaleRule(keep_ratio=0.6),
    "-3": ScaleRule(keep_ratio=0.5),
    "-2": ScaleRule(keep_ratio=0.5),
    "-1": ScaleRule(keep_ratio=0.5),
}
"""The ratios of ``configs/pruning/stepvar_balanced.yaml``: half of the dense FLOPs."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Where, how often and for which rows tokens are selected, and how the map becomes dense again.

    Attributes:
        scales: rule per scale. Published: late scales only, up to 70 % dropped; the default ratios
            are ours (S3: 2× fewer FLOPs).
        scope: how long a selection holds (S1). ``scale``: chosen once from the scale's input;
            ``layer``, ``branch``: chosen, pruned and restored in every layer or branch. Not
            published; ``scale`` alone has static shapes and pays for one selection.
        layers: pruned layers, half-open, as fractions of the depth (S2; published: all). With
            ``scope=scale`` the tokens are still chosen from the input of the scale.
        scored_rows: whose features decide (S8; not published). ``cond``: the conditional row, for
            both guidance rows; ``own``: every row its own set; ``mean``: mean score of the rows.
            The rows differ only inside the stack: ``scope=scale`` takes ``cond``.
        restore: what pruned positions receive (S10, S11). Published: ``nearest_state``; the others
            are ours, see ``stepvar_patch.upsample``.
        kv_write: keys and values that a pruned scale caches for later ones (S9; not published): of
            the kept tokens, none in any layer, or for every position those of its nearest kept
            token.
        min_coverage: g, at least one kept token in every g × g square (S12, ours); 0 = off.
    """

    replayable: ClassVar[bool] = True
    scales: Scales = field(default_factory=lambda: dict(BALANCED))
    scope: Literal["scale", "layer", "branch"] = "scale"
    layers: tuple[Annotated[float, Ge(0), Le(1)], Annotated[float, Ge(0), Le(1)]] = (0.0, 1.0)
    scored_rows: Literal["cond", "own", "mean"] = "cond"
    restore: Restoration = "nearest_state"
    kv_write: Literal["kept", "none", "propagate"] = "kept"
    min_coverage: Annotated[int, Ge(0)] = 0

    def start(self, request: PolicyRequest) -> PolicyRun:
        """A run for one call.

        Raises:
            UserError: a rule matches no scale, settings that exclude each other, or a scale that
                keeps fewer tokens than ``min_coverage`` needs.
        """
        return SelectionRun(request, self, self.score(request))

    def score(self, request: PolicyRequest) -> Score:
        """The score of one call, with whatever it remembers between scales.

        Raises:
            UserError: settings that exclude each other.
        """
        raise NotImplementedError


class SelectionRun(RuledRun):
    """Selects tokens by a score, at the scales that have a keep_ratio below 1."""

    def __init__(self, request: PolicyRequest, policy: Selection, score: Score) -> None:
        found, self.layers = list[str](), range(request.layers)
        with collecting(found):
            self.layers = layer_range(policy.layers, request.layers)
        found += _contradictions(policy, ends_early=self.layers.stop != request.layers)
        whole = policy.kv_write == "kept" and len(self.layers) == request.layers
        with collecting(found):
            super().__init__(request, policy.scales, whole_stack=whole)
        if found:
            raise Mistakes(found)
        self.policy, self.score = policy, score
        self.restore = stream_restore(policy.restore)
        self.restore_codes = code_restore(policy.restore)
        self.counts = {
            si: self.kept(si) for si, rule in self.rules.items() if rule.run and rule.keep_ratio < 1
        }
        self._check_coverage()
        if policy.kv_write == "none":
            self.cached_tokens = tuple(
                0 if si in self.counts else n for si, n in enumerate(self.cached_tokens)
            )

    def _check_coverage(self) -> None:
        found, cell = list[str](), self.policy.min_coverage
        for si, count in self.counts.items():
            grid = self.request.schedule.grids[si]
            if cell and cells(grid, cell) > count:
                found.append(
                    f"min_coverage is {cell}, which needs {cells(grid, cell)} tokens on the "
                    f"{grid[0]}×{grid[1]} grid of scale {si}, but its keep_ratio leaves {count}; "
                    "allowed: larger squares, a higher keep_ratio, or 0"
                )
        if found:
            raise Mistakes(found)

    def plan_scale(self, si: int, view: ScaleView) -> ScalePlan:
        if si not in self.counts:
            return self.plan(si)
        policy, x = self.policy, view.x
        if policy.scope != "scale":
            return self.plan(si, inside=policy.scope, kv_write=policy.kv_write)
        if view.rows == "both" and self.rule(si).rows != "both":
            images = self.request.images
            x = x[:images] if self.rule(si).rows == "cond" else x[images:]
        keep = self.select(si, x)
        return self.plan(
            si,
            keep=keep,
            layers=(self.layers.start, self.layers.stop),
            restore=self.restore,
            restore_codes=self.restore_codes,
            kv_write=policy.kv_write,
            kv_source=nearest_source(keep, view.grid) if policy.kv_write == "propagate" else None,
        )

    def load(self, si: int) -> ScaleLoad:
        load = super().load(si)
        if load.layers is None:
            return load
        n = self.request.schedule.tokens_per_scale[si]
        propagate = self.policy.kv_write == "propagate"
        return replace(
            load,
            layers=self.layers,
            cached=n if propagate else load.kept,
            writes=self.policy.kv_write != "none",
            visible=n if propagate else None,
            head_on_kept=self.restore_codes is not None,
        )

    def plan_branch(self, si: int, layer: int, branch: Branch, x: Tensor) -> BranchPlan | None:
        if layer not in self.layers:
            return None
        assert self.restore is not None
        return BranchPlan(self.select(si, x), self.restore)

    def select(self, si: int, x: Float[Tensor, "b n width"]) -> KeepSet:
        """The keep sets of scale ``si``, one per image, or per row if every row has its own."""
        images, grid, count = self.request.images, self.request.schedule.grids[si], self.counts[si]
        if self.policy.scored_rows == "cond":
            x = x[:images]
        scores = self.score(x, si, grid, count)
        if self.policy.scored_rows == "mean":
            scores = scores.unflatten(0, (-1, images)).mean(0)
        return self.best(si, scores)

    def best(self, si: int, scores: Float[Tensor, "rows n"]) -> KeepSet:
        """As many of the highest scores of every row as scale ``si`` keeps."""
        grid = self.request.schedule.grids[si]
        if self.policy.min_coverage:
            scores = min_coverage(scores, grid, self.policy.min_coverage)
        return top(scores, self.counts[si], grid)


def _contradictions(policy: Selection, *, ends_early: bool) -> list[str]:
    """Settings that exclude each other.

    Args:
        policy: the settings.
        ends_early: whether the pruned layers stop before the last one.
    """
    found, per_scale = [], policy.scope == "scale"
    if code_restore(policy.restore) is not None:
        if not per_scale:
            found.append(
                f"restore is {policy.restore} with scope {policy.scope}; allowed: scope scale, "
                "or a restoration of the stream"
            )
        if ends_early:
            found.append(
                f"restore is {policy.restore} with layers {list(policy.layers)}; allowed: "
                "layers that end at 1, or a restoration of the stream"
            )
    if policy.kv_write == "propagate" and not per_scale:
        found.append(
            f"kv_write is propagate with scope {policy.scope}; allowed: scope scale, or "
            "kv_write kept or none"
        )
    if policy.scored_rows != "cond" and per_scale:
        found.append(
            f"scored_rows is {policy.scored_rows} with scope scale, where the guidance rows of "
            "an image enter with the same features; allowed: cond, or scope layer or branch"
        )
    return found
