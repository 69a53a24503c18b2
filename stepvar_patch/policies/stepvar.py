"""StepVAR: keep the tokens that carry structure or texture, copy their results to the rest.

Shape legend: b rows, N positions of the scale, C width, q components.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from infinity.errors import UserError
from infinity.policy import Branch, Event, PolicyRequest, PolicyRun, ScalePlan, ScaleView
from infinity.schedule import Grid
from infinity.tokens import KeepSet
from stepvar_patch.policies.selection import Selection, SelectionRun
from stepvar_patch.scores.layer_change import resize_scores
from stepvar_patch.scores.structure import principal_directions, structure_edges, structure_score
from stepvar_patch.scores.texture import TextureFilter, texture_score
from stepvar_patch.select import ranks, split_quota, spread_ties
from stepvar_patch.upsample import nearest_source


@dataclass(frozen=True, kw_only=True)
class StepVARPolicy(Selection):
    """Training-free pruning by a structure and a texture score.

    Attributes:
        structure_share: weight of the structure score, the texture score having the rest; 0 or 1
            leaves one of them out. Published is ``w_str·s_str + s_txt`` without a value: a share of
            ``w_str / (1 + w_str)``; equal weights are ours (S4).
        structure: what of the projection on the principal directions counts: its ``magnitude``
            (published), or the length of its spatial ``gradient``, which is large at outlines,
            where the magnitude vanishes (ours).
        normalise: what makes the two comparable (S4; not published): divided by the mean over the
            tokens, left raw, or ranked.
        combine: ``sum`` (published), or ``split``: ``structure_share`` of the kept tokens by
            structure, the rest by texture.
        features: what is scored (S14; not published): the raw stream, or tokens of unit length.
        iterations: of the power iteration (S5; published: a few; the number is ours).
        start_vector: of the power iteration (S5; not published): the centred token of largest
            norm, or the direction found last.
        components: principal directions of the structure score (S6); published: 1.
        texture_filter: high-pass (S7); published: ``mean3``.
        scored_layer: None scores the input of the scale, which knows only what was drawn before
            (S1; our reading of what is published). A share of the depth scores the stream after so
            many layers of the previous scale, which knows what the model means to draw; the scores
            are resized (ours). 1 is the output of the last layer.
        smooth: take the 3×3 mean of each score, so that tokens beside a high score are kept rather
            than scattered ones (ours).

    Source: StepVAR, spec pruning-methods §1; S-numbers are the gaps listed in §1.7.
    """

    kind: Literal["stepvar"] = "stepvar"
    structure_share: Annotated[float, Ge(0), Le(1)] = 0.5
    structure: Literal["magnitude", "gradient"] = "magnitude"
    normalise: Literal["mean", "raw", "rank"] = "mean"
    combine: Literal["sum", "split"] = "sum"
    features: Literal["raw", "unit"] = "raw"
    iterations: Annotated[int, Ge(1), Le(20)] = 5
    start_vector: Literal["largest", "previous"] = "largest"
    components: Annotated[int, Ge(1), Le(8)] = 1
    texture_filter: TextureFilter = "mean3"
    scored_layer: Annotated[float, Gt(0), Le(1)] | None = None
    smooth: bool = False

    @property
    def name(self) -> str:
        return self.kind

    def start(self, request: PolicyRequest) -> PolicyRun:
        """A run for one call.

        Raises:
            UserError: as of :meth:`Selection.start`; or a layer is to be scored before the first
                scale, or with a scope inside the layers.
        """
        if self.scored_layer is None:
            return super().start(request)
        return LateLayerRun(request, self)

    def score(self, request: PolicyRequest) -> "_StepVARScore":
        """Structure and texture of the features."""
        return _StepVARScore(self)


class _StepVARScore:
    """Remembers the last directions, to start the next power iteration from."""

    def __init__(self, policy: StepVARPolicy) -> None:
        self.policy = policy
        self.directions: Tensor | None = None

    def __call__(
        self, x: Float[Tensor, "b n width"], si: int, grid: Grid, count: int
    ) -> Float[Tensor, "b n"]:
        return self.of_map(x, grid, grid, count)

    def of_map(
        self, x: Float[Tensor, "b n width"], seen: Grid, grid: Grid, count: int
    ) -> Float[Tensor, "b n_target"]:
        """Scores on ``grid`` of features on the grid ``seen``; each score is resized by itself."""
        policy, share = self.policy, self.policy.structure_share
        x = F.normalize(x.float(), dim=-1) if policy.features == "unit" else x
        texture = self._placed(texture_score(x, seen, policy.texture_filter), seen, grid)
        if share == 0:
            return texture
        structure = self._placed(self.structure(x, seen), seen, grid)
        if share == 1:
            return structure
        if policy.combine == "split":
            return split_quota(structure, texture, count, share, grid)
        structure, texture = (_normalised(s, policy.normalise) for s in (structure, texture))
        return share * structure + (1 - share) * texture

    def _placed(self, scores: Tensor, seen: Grid, grid: Grid) -> Float[Tensor, "b n_target"]:
        if self.policy.smooth:
            maps = scores.view(-1, 1, *seen)
            scores = F.avg_pool2d(maps, 3, stride=1, padding=1, count_include_pad=False).flatten(1)
        return resize_scores(scores, seen, grid)

    def structure(self, x: Float[Tensor, "b n width"], grid: Grid) -> Float[Tensor, "b n"]:
        """Structure score along the principal directions, found here."""
        policy, start = self.policy, None
        if policy.start_vector == "previous" and self.directions is not None:
            start = self.directions if len(self.directions) == len(x) else None
        self.directions = principal_directions(
            x, iterations=policy.iterations, components=policy.components, start=start
        )
        if policy.structure == "gradient":
            return structure_edges(x, self.directions, grid)
        return structure_score(x, self.directions)


class LateLayerRun(SelectionRun):
    """Scores what one layer gave out at the last executed scale."""

    def __init__(self, request: PolicyRequest, policy: StepVARPolicy) -> None:
        self.of_map = (score := policy.score(request)).of_map
        super().__init__(request, policy, score)
        if policy.scope != "scale":
            raise UserError(
                f"scored_layer is {policy.scored_layer} with scope {policy.scope}; allowed: scope "
                "scale, or scored_layer null"
            )
        self.scored = max(0, round((policy.scored_layer or 1) * request.layers) - 1)
        self.sources = {self.executed_before(si) for si in self.counts}
        if None in self.sources:
            raise UserError(
                "scored_layer: scales prunes the first scale that runs, before which there is no "
                "layer to score; allowed: scales after an executed one, or scored_layer null"
            )
        self.features: Tensor | None = None
        self.grid: Grid = request.schedule.grids[0]
        self.keep: KeepSet | None = None

    def plan_scale(self, si: int, view: ScaleView) -> ScalePlan:
        plan = super().plan_scale(si, view)
        if plan.run:
            self.grid, self.keep = view.grid, plan.keep
        self.events = frozenset[Event]({"layer"} if si in self.sources else ())
        return plan

    def after(self, event: Event, si: int, layer: int, branch: Branch | None, data: Any) -> None:
        """Takes the features of the images' conditional rows (or of the rows that are left)."""
        if layer != self.scored:
            return
        x = data[1][: self.request.images].float()
        if self.keep is not None and layer in self.layers:
            source = nearest_source(self.keep, self.grid)
            x = x.gather(1, source[:, :, None].expand(-1, -1, x.shape[2]))
        self.features = x

    def select(self, si: int, x: Float[Tensor, "b n width"]) -> KeepSet:
        assert self.features is not None
        grid = self.request.schedule.grids[si]
        scores = self.of_map(self.features, self.grid, grid, self.counts[si])
        return self.best(si, spread_ties(scores, grid))


def _normalised(scores: Tensor, kind: str) -> Tensor:
    if kind == "mean":
        return scores / scores.mean(1, keepdim=True).clamp_min(1e-30)
    return ranks(scores) if kind == "rank" else scores
