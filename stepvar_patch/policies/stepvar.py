"""StepVAR: keep the tokens that carry structure or texture, copy their results to the rest.

Shape legend: b rows, N positions of the scale, C width, q components.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from infinity.errors import UserError
from infinity.policy import PolicyRequest
from infinity.schedule import Grid
from stepvar_patch.policies.selection import Score, Selection
from stepvar_patch.scores.structure import principal_directions, structure_edges, structure_score
from stepvar_patch.scores.texture import TextureFilter, texture_score
from stepvar_patch.select import ranks, split_quota


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
            tokens, left raw, standardised, or ranked.
        combine: ``sum`` (published); ``product`` of powers; ``max`` of the weighted scores;
            ``split``: ``structure_share`` of the kept tokens by structure, the rest by texture.
        features: what is scored (S14; not published): the raw stream, the stream after layer norm,
            or unit tokens.
        iterations: of the power iteration (S5; published: a few; the number is ours).
        start_vector: of the power iteration (S5; not published): the centred token of largest
            norm, or the direction found last.
        components: principal directions of the structure score (S6); published: 1.
        texture_filter: high-pass (S7); published: ``mean3``.

    Source: StepVAR, spec pruning-methods §1; S-numbers are the gaps listed in §1.7.
    """

    kind: Literal["stepvar"] = "stepvar"
    structure_share: Annotated[float, Ge(0), Le(1)] = 0.5
    structure: Literal["magnitude", "gradient"] = "magnitude"
    normalise: Literal["mean", "raw", "zscore", "rank"] = "mean"
    combine: Literal["sum", "product", "max", "split"] = "sum"
    features: Literal["raw", "layer_norm", "unit"] = "raw"
    iterations: Annotated[int, Ge(1), Le(20)] = 5
    start_vector: Literal["largest", "previous"] = "largest"
    components: Annotated[int, Ge(1), Le(8)] = 1
    texture_filter: TextureFilter = "mean3"

    @property
    def name(self) -> str:
        return self.kind

    def score(self, request: PolicyRequest) -> Score:
        """Structure and texture of the features.

        Raises:
            UserError: a product of scores that can be negative.
        """
        if self.combine == "product" and self.normalise == "zscore":
            raise UserError(
                "combine is product with normalise zscore, whose scores can be negative; allowed: "
                "mean, raw or rank"
            )
        return _StepVARScore(self)


class _StepVARScore:
    """Remembers the last directions, to start the next power iteration from."""

    def __init__(self, policy: StepVARPolicy) -> None:
        self.policy = policy
        self.directions: Tensor | None = None

    def __call__(
        self, x: Float[Tensor, "b n width"], si: int, grid: Grid, count: int
    ) -> Float[Tensor, "b n"]:
        policy, share = self.policy, self.policy.structure_share
        x = _features(x, policy.features)
        if share == 0:
            return texture_score(x, grid, policy.texture_filter)
        structure = self.structure(x, grid)
        if share == 1:
            return structure
        texture = texture_score(x, grid, policy.texture_filter)
        if policy.combine == "split":
            return split_quota(structure, texture, count, share, grid)
        structure, texture = (_normalised(s, policy.normalise) for s in (structure, texture))
        if policy.combine == "product":
            return structure**share * texture ** (1 - share)
        if policy.combine == "max":
            return torch.maximum(share * structure, (1 - share) * texture)
        return share * structure + (1 - share) * texture

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


def _features(x: Tensor, kind: str) -> Tensor:
    if kind == "layer_norm":
        return F.layer_norm(x.float(), x.shape[-1:])
    return F.normalize(x.float(), dim=-1) if kind == "unit" else x


def _normalised(scores: Tensor, kind: str) -> Tensor:
    if kind == "mean":
        return scores / scores.mean(1, keepdim=True).clamp_min(1e-30)
    if kind == "zscore":
        centred = scores - scores.mean(1, keepdim=True)
        return centred / scores.std(1, keepdim=True, correction=0).clamp_min(1e-30)
    return ranks(scores) if kind == "rank" else scores
