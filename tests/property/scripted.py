"""A policy that does as it is told, and the places where guidance can act."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from infinity.policy import (
    DENSE_SCALE,
    Branch,
    BranchPlan,
    DenseRun,
    PolicyRequest,
    PolicyRun,
    RestoreContext,
    ScalePlan,
    ScaleView,
)
from infinity.tokens import KeepSet, PackedTokens, unpack
from infinity.transformer.guidance import Guidance


def overwrite(fresh: PackedTokens, context: RestoreContext) -> Tensor:
    """Pruned positions keep the stream they had."""
    return unpack(fresh, context.before)


def overwrite_change(fresh: PackedTokens, context: RestoreContext) -> Tensor:
    return unpack(fresh, torch.zeros_like(context.before))


@dataclass(frozen=True)
class Scripted:
    """Keeps ``counts`` positions per image at the last scales, evenly spread; ``plan`` adds to
    it.
    """

    counts: tuple[int, ...] | None = None
    scales: int = 2
    plan: dict[str, Any] = field(default_factory=dict)
    inside: Literal["layer", "branch"] | None = None
    name: str = "scripted"

    def start(self, request: PolicyRequest) -> PolicyRun:
        return ScriptedRun(request, self)


class ScriptedRun(DenseRun):
    def __init__(self, request: PolicyRequest, script: Scripted) -> None:
        super().__init__(request)
        self.script = script

    def keep(self, positions: int, device: torch.device) -> KeepSet:
        counts = self.script.counts or (positions,) * self.request.images
        rows = [
            torch.arange(n, device=device) * positions // n
            for n in (min(c, positions) for c in counts)
        ]
        return KeepSet(torch.cat(rows), tuple(len(r) for r in rows))

    def plan_scale(self, si: int, view: ScaleView) -> ScalePlan:
        if si < len(self.request.schedule) - self.script.scales:
            return DENSE_SCALE
        plan = self.script.plan
        if self.script.inside:
            return ScalePlan(inside=self.script.inside, **plan)
        keep = self.keep(view.grid[0] * view.grid[1], view.x.device)
        restore = {} if "restore_codes" in plan else {"restore": overwrite}
        return ScalePlan(keep=keep, **restore, **plan)

    def plan_branch(self, si: int, layer: int, branch: Branch, x: Tensor) -> BranchPlan | None:
        restore = overwrite if branch == "layer" else overwrite_change
        return BranchPlan(self.keep(x.shape[1], x.device), restore)


@dataclass(frozen=True)
class Answering:
    """Plans every scale with a function."""

    answer: Callable[[int], ScalePlan]
    name: str = "answering"

    def start(self, request: PolicyRequest) -> PolicyRun:
        run = DenseRun(request)
        run.plan_scale = lambda si, view: self.answer(si)  # type: ignore[method-assign]
        return run


GUIDANCE = {
    "logits": Guidance(frozenset(), True),
    "hidden": Guidance(frozenset({1}), False),
    "both": Guidance(frozenset({0}), True),
}
