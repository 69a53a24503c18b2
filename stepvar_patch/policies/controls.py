"""Controls: what pruning is worth when the score is blind or simple.

They differ from StepVAR in the score alone; every other setting is shared (``Selection``).
Shape legend: B images, b rows, N positions of the scale, C width.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Lt
from jaxtyping import Float
from torch import Tensor

from infinity.policy import PolicyRequest
from infinity.schedule import Grid
from stepvar_patch.policies.selection import Score, Selection
from stepvar_patch.scores.mean_distance import mean_distance
from stepvar_patch.scores.norm import norm
from stepvar_patch.scores.random import random_score
from stepvar_patch.select import lattice_score


@dataclass(frozen=True, kw_only=True)
class RandomPolicy(Selection):
    """Keeps random tokens, anew at every scale, layer or branch.

    Attributes:
        seed: of the choice. All images share it, and with it their choice, so that no image
            depends on its place in a batch; the random numbers of sampling are untouched.
    """

    kind: Literal["random"] = "random"
    seed: Annotated[int, Ge(0), Lt(1 << 63)] = 0

    @property
    def name(self) -> str:
        return self.kind

    def score(self, request: PolicyRequest) -> Score:
        calls = 0

        def random(x: Float[Tensor, "b n width"], si: int, grid: Grid, count: int) -> Tensor:
            nonlocal calls
            calls += 1
            return random_score(si, calls, x.shape[1], self.seed, x.device).expand(x.shape[:2])

        return random


@dataclass(frozen=True, kw_only=True)
class LatticePolicy(Selection):
    """Keeps evenly spread tokens, whatever the picture."""

    kind: Literal["lattice"] = "lattice"

    @property
    def name(self) -> str:
        return self.kind

    def score(self, request: PolicyRequest) -> Score:
        return lambda x, si, grid, count: lattice_score(grid, x.device).expand(x.shape[:2])


@dataclass(frozen=True, kw_only=True)
class NormPolicy(Selection):
    """Keeps the tokens with the largest features: StepVAR's own baseline."""

    kind: Literal["norm"] = "norm"

    @property
    def name(self) -> str:
        return self.kind

    def score(self, request: PolicyRequest) -> Score:
        return lambda x, si, grid, count: norm(x, grid)


@dataclass(frozen=True, kw_only=True)
class MeanDistancePolicy(Selection):
    """Keeps the tokens farthest from the mean: FastVAR's choice without its restoration."""

    kind: Literal["mean_distance"] = "mean_distance"

    @property
    def name(self) -> str:
        return self.kind

    def score(self, request: PolicyRequest) -> Score:
        return lambda x, si, grid, count: mean_distance(x, grid)
