"""LD-Pruning: codes show where detail is, logits show when guidance has settled.

Shape legend: B images, N positions of a scale, T kept tokens of all images, D bits per token.
"""

import logging
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from jaxtyping import Float
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
from stepvar_patch.cost import ScaleLoad
from stepvar_patch.policies.ruled import RuledRun
from stepvar_patch.rules import ScaleRule, Scales
from stepvar_patch.scores.haar_energy import haar_energy
from stepvar_patch.select import energy_counts, top_each
from stepvar_patch.upsample import code_base

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LDPruningPolicy:
    """Keeps, per image, the tokens that hold a share of the detail energy of the last codes.

    Attributes:
        scales: rule per scale; ``keep_ratio`` caps the kept share, 1 (published) is no cap.
        energy_share: ρ, share of the energy that the kept tokens hold; 1 keeps everything.
        rungs: kept counts are rounded up to multiples of the scale's tokens divided by so many (a
            whole number, rounded up), 16 to sixteenths, so that pictures share recorded calls on a
            GPU; 0 (published), or as many as there are tokens, keeps exactly what the energy asks
            for.
        base_gain: amplitude of the previous codes repeated at pruned positions; published: 1, and
            0 leaves the latent unchanged there.
        branch_stop: δ; the unconditional rows end once the relative change of the guidance distance
            between two scales falls below it; 0 = never.
        first_stop_scale: earliest scale after which they may end, counted from the end.

    A batch ends its unconditional rows together, when every image of it has settled: with more than
    one image per batch, this part depends on the batch. Region selection never does.

    Source: LD-Pruning, spec pruning-methods §6. Ours, where nothing is published: the distance is a
    root mean square per logit, which does not grow with the scale.
    """

    replayable: ClassVar[bool] = True
    kind: Literal["ldpruning"] = "ldpruning"
    scales: Scales = field(
        default_factory=lambda: {"-3": ScaleRule(), "-2": ScaleRule(), "-1": ScaleRule()}
    )
    energy_share: Annotated[float, Gt(0), Le(1)] = 0.5
    rungs: Annotated[int, Ge(0)] = 0
    base_gain: Annotated[float, Ge(0), Le(1)] = 1.0
    branch_stop: Annotated[float, Ge(0)] = 0.15
    first_stop_scale: Annotated[int, Lt(0)] = -4

    @property
    def name(self) -> str:
        return self.kind

    def start(self, request: PolicyRequest) -> PolicyRun:
        """A run for one call.

        Raises:
            UserError: a rule matches no scale, prunes a scale without an executed one before it, or
                ``first_stop_scale`` lies before the second scale.
        """
        return LDPruningRun(request, self)


class LDPruningRun(RuledRun):
    """Remembers the guidance distance of the last executed scale, per image."""

    def __init__(self, request: PolicyRequest, policy: LDPruningPolicy) -> None:
        super().__init__(request, policy.scales, whole_stack=True)
        self.policy = policy
        for si in self.rules:
            if self.rule(si).run and self.executed_before(si) is None:
                raise UserError(
                    f"ldpruning: scales prunes scale {si}, before which no scale runs; allowed: "
                    "scales after an executed one, whose codes select the tokens"
                )
        self.stop_from = len(request.schedule) + policy.first_stop_scale
        self.stopping = policy.branch_stop > 0 and request.guidance_rows > 1
        if self.stopping and any(rule.rows == "uncond" for rule in self.rules.values()):
            raise UserError(
                "ldpruning: branch_stop ends the unconditional rows, but a rule in scales keeps "
                "only them; allowed: branch_stop=0, or rows 'both' or 'cond'"
            )
        if self.stopping and self.stop_from < 1:
            raise UserError(
                f"ldpruning: first_stop_scale is {policy.first_stop_scale}; allowed on this "
                f"{len(request.schedule)}-scale schedule: {1 - len(request.schedule)} … -1"
            )
        self.distance: Tensor | None = None
        self.settled: Tensor | None = None
        self.stopped = False
        self.counts: tuple[int, ...] = ()

    @property
    def idle(self) -> bool:
        chooses = self.policy.energy_share < 1 and any(rule.run for rule in self.rules.values())
        return super().idle and not chooses and not self.stopping

    def load(self, si: int) -> ScaleLoad:
        """What scale ``si`` costs.

        Raises:
            UserError: the codes or logits decide that.
        """
        if self.stopping or (self.policy.energy_share < 1 and si in self.rules):
            raise UserError(
                "ldpruning keeps tokens and rows by what it has drawn so far, so its cost cannot "
                "be told beforehand"
            )
        return replace(super().load(si), head_on_kept=si in self.pruned)

    def plan_scale(self, si: int, view: ScaleView) -> ScalePlan:
        rule, scores = self.rule(si), self._scores(si, view)
        counts = self._learn(si, view, scores)
        listening = self.stopping and not self.stopped and si >= self.stop_from - 1
        self.events = frozenset[Event]({"logits"} if listening else ())
        if self.stopped and rule.rows == "both":
            rule = replace(rule, rows="cond")
        if scores is None:
            self.counts = (view.grid[0] * view.grid[1],) * self.request.images
            return self.plan(si, rule)
        self.counts = counts
        keep = top_each(scores, counts, view.grid)
        return self.plan(si, rule, keep=keep, restore_codes=code_base(self.policy.base_gain))

    def _scores(self, si: int, view: ScaleView) -> Float[Tensor, "images n"] | None:
        """What chooses the tokens of scale ``si``; None if it computes all or none."""
        chooses = si in self.pruned or (si in self.rules and self.policy.energy_share < 1)
        if not chooses or not self.rule(si).run:
            return None
        assert view.codes is not None
        return haar_energy(view.codes, view.grid)

    def _learn(self, si: int, view: ScaleView, scores: Tensor | None) -> tuple[int, ...]:
        """Kept tokens per image, and on the way whether guidance has settled: one wait for both."""
        asked = [] if self.settled is None else [self.settled]
        if scores is not None:
            counts = energy_counts(scores, self.policy.energy_share, view.grid)
            if self.policy.rungs:
                step = -(-scores.shape[1] // self.policy.rungs)
                counts = (counts + step - 1) // step * step
            asked.append(counts.clamp(max=self.kept(si)))
        answers = view.decide(torch.cat(asked)) if asked else ()
        if self.settled is not None:
            self.stopped, self.settled = bool(answers[0]), None
            answers = answers[1:]
        return answers

    def after(self, event: Event, si: int, layer: int, branch: Branch | None, data: Any) -> None:
        """Compares the guidance distance of this scale with the one before."""
        cond, uncond = data
        if uncond is None:
            logger.warning(
                "ldpruning: scale %d has no unconditional logits to compare (guidance off, or "
                "combined inside the stack), so branch_stop has nothing to end",
                si,
            )
            self.stopping = False
            return
        squares = (cond - uncond).float().square().split(self.counts)
        distance = torch.stack([part.mean().sqrt() for part in squares])
        if self.distance is not None and si >= self.stop_from:
            change = (distance - self.distance).abs() / (self.distance + 1e-6)
            self.settled = (change < self.policy.branch_stop).all().long().view(1)
        self.distance = distance
