"""SkipVAR: leave out last scales or their unconditional rows, as early pictures suggest.

Shape legend: B images, N positions of a scale, D bits per token.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Gt, Le, Lt, MinLen
from jaxtyping import Float, Int64
from torch import Tensor

from infinity.errors import UserError
from infinity.policy import PolicyRequest, PolicyRun, ScalePlan, ScaleView
from infinity.schedule import Grid
from infinity.tokenizer.quantizer import resize
from infinity.tokens import KeepSet, pack, unpack
from stepvar_patch.cost import ScaleLoad
from stepvar_patch.policies.ruled import RuledRun
from stepvar_patch.policies.skipvar_features import preview_features
from stepvar_patch.rules import ScaleRule, Scales


@dataclass(frozen=True, kw_only=True)
class LogisticFit:
    """A multinomial logistic regression as plain numbers; class ``c`` stands for saving ``c``
    scales.

    Attributes:
        mean, scale: standardise each feature, in the order of ``preview_features``.
        weights: one row per class, one number per feature.
        bias: one number per class.
    """

    mean: tuple[float, float]
    scale: tuple[Annotated[float, Gt(0)], Annotated[float, Gt(0)]]
    weights: Annotated[tuple[tuple[float, float], ...], MinLen(1)]
    bias: Annotated[tuple[float, ...], MinLen(1)]

    def choose(self, features: Float[Tensor, "b 2"]) -> Int64[Tensor, " b"]:
        """The likeliest class per image, on the device; ties go to the smaller saving."""
        # Plain numbers: a tensor of them would be a copy from the host, which cannot be recorded.
        standard = [
            (column.double() - mean) / scale
            for column, mean, scale in zip(features.unbind(1), self.mean, self.scale, strict=True)
        ]
        scores = []
        for row, bias in zip(self.weights, self.bias, strict=True):
            terms = [weight * column for weight, column in zip(row, standard, strict=True)]
            scores.append(sum(terms, start=torch.full_like(terms[0], bias)))
        return torch.stack(scores, dim=1).argmax(dim=1)


@dataclass(frozen=True, kw_only=True)
class SkipDecision:
    """The adaptive part, taken once per image.

    Attributes:
        drop: how many last scales to leave out.
        rows: how many last scales to run without unconditional rows, where ``drop`` says none.
        after_scale: the decision follows this scale, counted from the end; published: the tenth
            of 13.
        preview_share: the early pictures are decoded on the grid of the scale whose share of the
            last scale's tokens is nearest to this; published: 8² of 64².
    """

    drop: LogisticFit
    rows: LogisticFit
    after_scale: Annotated[int, Lt(-1)] = -4
    preview_share: Annotated[float, Gt(0), Le(1)] = 1 / 64


@dataclass(frozen=True, kw_only=True)
class SkipVARPolicy:
    """Leaves out whole scales and rows, never single tokens.

    Attributes:
        scales: the fixed part: ``run`` and ``rows`` per scale. The default leaves the last scale
            out and the unconditional rows off in the three before; the published fixed hybrid is
            not known.
        decision: the adaptive part, fitted by :mod:`stepvar_patch.policies.skipvar_fit` on runs of
            the same model; None = fixed only.

    In a batch every image drops its own scales: one that has ended keeps a single token, whose code
    is discarded. Rows are dropped by the whole batch, once every running image allows it, so with
    more than one image per batch that part depends on the batch.

    Source: SkipVAR (arXiv 2506.08908), spec pruning-methods §4.
    """

    replayable: ClassVar[bool] = True
    kind: Literal["skipvar"] = "skipvar"
    scales: Scales = field(
        default_factory=lambda: {
            "-4": ScaleRule(rows="cond"),
            "-3": ScaleRule(rows="cond"),
            "-2": ScaleRule(rows="cond"),
            "-1": ScaleRule(run=False),
        }
    )
    decision: SkipDecision | None = None

    @property
    def name(self) -> str:
        return self.kind

    def start(self, request: PolicyRequest) -> PolicyRun:
        """A run for one call.

        Raises:
            UserError: a rule matches no scale or prunes tokens; the decision comes too early or too
                late for the schedule, its two fits have weights and bias of different lengths, or a
                rule keeps only the rows that it ends.
        """
        return SkipVARRun(request, self)


class SkipVARRun(RuledRun):
    """Decides once; before that every scale follows the rules alone."""

    def __init__(self, request: PolicyRequest, policy: SkipVARPolicy) -> None:
        super().__init__(request, policy.scales, whole_stack=True)
        for si in self.pruned:
            raise UserError(
                f"skipvar: scales.{si - len(request.schedule)}.keep_ratio is "
                f"{self.rules[si].keep_ratio}; allowed: 1, as skipvar drops scales and rows, "
                "not tokens"
            )
        self.decision = policy.decision
        self.decided_after = len(request.schedule)
        if policy.decision is not None:
            self.decided_after += policy.decision.after_scale
            self._check(policy.decision)
            if any(rule.rows == "uncond" for rule in self.rules.values()):
                raise UserError(
                    "skipvar: the decision ends the unconditional rows, but a rule in scales keeps "
                    "only them; allowed: rows both or cond, or no decision"
                )
        self.older: Tensor | None = None
        self.dropped = (0,) * request.images
        self.unguided = (0,) * request.images

    def _check(self, decision: SkipDecision) -> None:
        count = len(self.request.schedule)
        if self.decided_after < 1:
            raise UserError(
                f"skipvar: decision.after_scale is {decision.after_scale}; allowed on this "
                f"{count}-scale schedule: {1 - count} … -2"
            )
        for name, fit in (("drop", decision.drop), ("rows", decision.rows)):
            if len(fit.weights) != len(fit.bias) or len(fit.bias) > -decision.after_scale:
                raise UserError(
                    f"skipvar: decision.{name} has {len(fit.weights)} rows of weights and "
                    f"{len(fit.bias)} of bias; allowed: equally many, at most "
                    f"{-decision.after_scale}, the scales after the decision and none"
                )

    @property
    def idle(self) -> bool:
        return super().idle and self.decision is None

    def load(self, si: int) -> ScaleLoad:
        """What scale ``si`` costs.

        Raises:
            UserError: the early pictures decide that.
        """
        if self.decision is not None:
            raise UserError(
                "skipvar with a decision drops scales and rows by its early pictures, so its cost "
                "cannot be told beforehand"
            )
        return super().load(si)

    def plan_scale(self, si: int, view: ScaleView) -> ScalePlan:
        if si == self.decided_after:
            self.older = view.latent
        elif si == self.decided_after + 1:
            self._decide(view)
        rule = self.rule(si)
        count = len(self.request.schedule)
        running = [si < count - dropped for dropped in self.dropped]
        if not rule.run or not any(running):
            return self.plan(si, replace(rule, run=False))
        settled = all(
            not dropped and si >= count - unguided
            for dropped, unguided, runs in zip(self.dropped, self.unguided, running, strict=True)
            if runs
        )
        if rule.rows == "both" and settled:
            rule = replace(rule, rows="cond")
        if all(running):
            return self.plan(si, rule)
        return self.plan(si, rule, keep=_only(running, view), restore_codes=_Blank(tuple(running)))

    def _decide(self, view: ScaleView) -> None:
        assert self.decision is not None
        if view.decode is None or self.older is None:
            raise UserError("skipvar: decision needs a picture decoder, which this caller lacks")
        grid = preview_grid(
            self.request.schedule.latent_grids(self.request.patchify), self.decision.preview_share
        )
        older, newer = (view.decode(resize(z, grid)) for z in (self.older, view.latent))
        features = preview_features(older, newer)
        classes = [fit.choose(features) for fit in (self.decision.drop, self.decision.rows)]
        chosen, images = view.decide(torch.cat(classes)), self.request.images
        self.dropped, self.unguided = chosen[:images], chosen[images:]


@dataclass(frozen=True)
class _Blank:
    """Codes of the running images; nothing for those that have ended."""

    running: tuple[bool, ...]

    def __call__(self, codes: Tensor, keep: KeepSet, view: ScaleView) -> Tensor:
        blank = codes.new_zeros(len(self.running), view.grid[0] * view.grid[1], codes.shape[-1])
        dense = unpack(pack(blank, keep).with_x(codes), blank)
        return dense * torch.tensor(self.running, device=codes.device)[:, None, None]


def _only(running: list[bool], view: ScaleView) -> KeepSet:
    n = view.grid[0] * view.grid[1]
    counts = tuple(n if runs else 1 for runs in running)
    positions = torch.arange(n, device=view.x.device)
    return KeepSet(torch.cat([positions[:count] for count in counts]), counts)


def preview_grid(grids: tuple[Grid, ...], share: float) -> Grid:
    """The grid whose share of the last grid's cells is nearest to ``share``, as a ratio."""
    last = grids[-1][0] * grids[-1][1]
    return min(grids, key=lambda grid: abs(math.log(grid[0] * grid[1] / last / share)))
