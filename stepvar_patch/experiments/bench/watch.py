"""How many tokens a policy keeps, seen while it draws."""

from statistics import fmean
from typing import Any

from torch import Tensor

from infinity.policy import (
    Branch,
    BranchPlan,
    PolicyRequest,
    PolicyRun,
    PruningPolicy,
    ScalePlan,
    ScaleView,
)


class KeptTokens:
    """A policy that does as another one, and counts what that keeps.

    Attributes:
        per_scale: of the last call: tokens computed per row where the scale is pruned (mean over
            rows, and over pruned layers and branches); all of them at a dense scale, 0 if it is
            left out.
    """

    def __init__(self, policy: PruningPolicy) -> None:
        self.policy = policy
        self.name = policy.name
        self.per_scale: list[float] = []

    def start(self, request: PolicyRequest) -> PolicyRun:
        self.per_scale = [0.0] * len(request.schedule)
        return _CountingRun(self.policy.start(request), self.per_scale)


class _CountingRun:
    def __init__(self, inner: PolicyRun, per_scale: list[float]) -> None:
        self.inner, self.per_scale = inner, per_scale
        self.cached_tokens, self.events = inner.cached_tokens, inner.events
        self.inside: list[float] = []

    def plan_scale(self, si: int, view: ScaleView) -> ScalePlan:
        plan = self.inner.plan_scale(si, view)
        self.events, self.inside = self.inner.events, []
        kept = float(view.x.shape[1]) if plan.keep is None else fmean(plan.keep.counts)
        self.per_scale[si] = kept if plan.run else 0.0
        return plan

    def plan_branch(self, si: int, layer: int, branch: Branch, x: Tensor) -> BranchPlan | None:
        plan = self.inner.plan_branch(si, layer, branch, x)
        if plan is not None:
            self.inside.append(fmean(plan.keep.counts))
            self.per_scale[si] = fmean(self.inside)
        return plan

    def after(self, event: Any, si: int, layer: int, branch: Branch | None, data: Any) -> None:
        self.inner.after(event, si, layer, branch, data)
