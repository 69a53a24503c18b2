"""Token merging for reference: similar tokens share one computation inside a branch.

Shape legend: b rows, N positions, S sources, D destinations, M computed tokens, C width.
"""

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le, MinLen
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from infinity.errors import UserError
from infinity.policy import (
    Branch,
    BranchPlan,
    PolicyRequest,
    PolicyRun,
    RestoreContext,
    ScalePlan,
    ScaleView,
)
from infinity.schedule import Grid
from infinity.tokens import KeepSet, PackedTokens, pack
from stepvar_patch.cost import ScaleLoad
from stepvar_patch.policies.ruled import RuledRun, layer_range
from stepvar_patch.rules import ScaleRule, Scales

MergedBranch = Literal["self_attention", "cross_attention", "ffn"]


@dataclass(frozen=True, kw_only=True)
class ToMePolicy:
    """Merges the most similar tokens of a scale before a branch, and copies the result back.

    Attributes:
        scales: rule per scale; ``keep_ratio`` is the share of tokens left after merging, at least
            the share of destinations (about ¼).
        branches: where tokens are merged. The published advice is self-attention only.
        layers: half-open range as fractions of the depth.

    Source: ToMe for Stable Diffusion (arXiv 2303.17604); spec pruning-methods §8. Deviation: the
    destination is always the top left token of a 2×2 cell, which keeps pictures reproducible.
    """

    kind: Literal["tome"] = "tome"
    scales: Scales = field(
        default_factory=lambda: {"-2": ScaleRule(keep_ratio=0.5), "-1": ScaleRule(keep_ratio=0.5)}
    )
    branches: Annotated[tuple[MergedBranch, ...], MinLen(1)] = ("self_attention",)
    layers: tuple[Annotated[float, Ge(0), Le(1)], Annotated[float, Ge(0), Le(1)]] = (0.0, 1.0)

    @property
    def name(self) -> str:
        return self.kind

    def start(self, request: PolicyRequest) -> PolicyRun:
        """A run for one call.

        Raises:
            UserError: a rule matches no scale or keeps fewer tokens than there are destinations;
                the layer range is empty.
        """
        return ToMeRun(request, self)


class ToMeRun(RuledRun):
    """Similarities are taken afresh in every branch, per row."""

    def __init__(self, request: PolicyRequest, policy: ToMePolicy) -> None:
        super().__init__(request, policy.scales, whole_stack=False)
        self.branches = policy.branches
        self.layers = layer_range(policy.layers, request.layers)
        for si in self.pruned:
            h, w = request.schedule.grids[si]
            least = destinations((h, w))
            if self.kept(si) < least:
                raise UserError(
                    f"tome: scales.{si - len(request.schedule)}.keep_ratio is "
                    f"{self.rules[si].keep_ratio}; allowed on its {h}×{w} grid: at least "
                    f"{least / (h * w):.4g}, one token per 2×2 cell"
                )

    def load(self, si: int) -> ScaleLoad:
        load = super().load(si)
        if si not in self.pruned:
            return load
        n = self.request.schedule.tokens_per_scale[si]
        corners = destinations(self.request.schedule.grids[si])
        return replace(
            load,
            layers=self.layers,
            branches=frozenset[Branch](self.branches),
            cached=load.kept if "self_attention" in self.branches else n,
            choosing=2 * (n - corners) * corners * self.request.width,
        )

    def plan_scale(self, si: int, view: ScaleView) -> ScalePlan:
        return self.plan(si, inside="branch" if si in self.pruned else None)

    def plan_branch(self, si: int, layer: int, branch: Branch, x: Tensor) -> BranchPlan | None:
        if layer not in self.layers or branch not in self.branches:
            return None
        merge = match(x, self.request.schedule.grids[si], x.shape[1] - self.kept(si))
        return BranchPlan(merge.keep, merge.copy_back, merge.gather)


@dataclass(frozen=True)
class Merge:
    """Which tokens are computed, and for every position which of them stands for it.

    Attributes:
        keep: destinations and unmerged sources, the same number in every row.
        owner: ``(b, N)`` index into the row's kept tokens.
    """

    keep: KeepSet
    owner: Int64[Tensor, "b n"]

    def gather(self, x: Float[Tensor, "b n width"], keep: KeepSet) -> PackedTokens:
        """Kept tokens, each the mean of itself and the tokens merged into it.

        Summed by ``index_put``, which on a GPU adds in a fixed order, unlike ``index_add``.
        """
        tokens = pack(x, keep)
        slots = (self._flat_owner(),)
        ones = torch.ones_like(x[..., :1])
        total = torch.zeros_like(tokens.x).index_put(slots, x.flatten(0, 1), accumulate=True)
        count = torch.zeros_like(tokens.x[:, :1]).index_put(
            slots, ones.flatten(0, 1), accumulate=True
        )
        return tokens.with_x(total / count)

    def copy_back(self, fresh: PackedTokens, context: RestoreContext) -> Tensor:
        """Every position receives the branch output of the token that stands for it."""
        return fresh.x[self._flat_owner()].view(*self.owner.shape, -1)

    def _flat_owner(self) -> Int64[Tensor, " total"]:
        rows = torch.arange(len(self.owner), device=self.owner.device)
        return (self.owner + rows[:, None] * self.keep.counts[0]).flatten()


def match(x: Float[Tensor, "b n width"], grid: Grid, merged: int) -> Merge:
    """The ``merged`` sources most similar to some destination, merged into it.

    Args:
        x: stream entering the branch.
        grid: ``(h, w)`` with ``h·w = N``.
        merged: in [0, number of sources]; equal similarities go to the lower index.

    Source: ToMe bipartite soft matching; spec pruning-methods §8.
    """
    rows, n, _ = x.shape
    corner = torch.zeros(grid, dtype=torch.bool, device=x.device)
    corner[::2, ::2] = True
    cells = destinations(grid)
    sources, corners = corner.flatten().int().argsort(stable=True).split([n - cells, cells])
    unit = F.normalize(x.float(), dim=-1)
    similarity = unit[:, sources] @ unit[:, corners].mT
    best, nearest = similarity.max(dim=-1)
    order = best.argsort(dim=1, descending=True, stable=True)[:, :merged]
    kept = torch.ones(rows, n, dtype=torch.bool, device=x.device)
    kept.scatter_(1, sources[order], False)
    slots = kept.long().cumsum(1) - 1
    stand_in = corners[nearest.gather(1, order)]
    owner = slots.scatter(1, sources[order], slots.gather(1, stand_in))
    indices = (~kept).int().argsort(dim=1, stable=True)[:, : n - merged]
    return Merge(KeepSet.of_rows(indices), owner)


def destinations(grid: Grid) -> int:
    """Number of 2×2 cells, the last row and column of an odd grid included."""
    return ((grid[0] + 1) // 2) * ((grid[1] + 1) // 2)
