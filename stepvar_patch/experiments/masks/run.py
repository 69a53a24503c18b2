"""What a policy keeps, seen: maps of every scale beside the picture so far."""

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from infinity.errors import UserError
from infinity.io.files import make_folder
from infinity.policy import (
    Branch,
    BranchPlan,
    Event,
    PolicyRequest,
    PolicyRun,
    PruningPolicy,
    ScalePlan,
    ScaleView,
)
from infinity.tokens import KeepSet
from stepvar_patch.experiments.check import check
from stepvar_patch.experiments.compare import draw
from stepvar_patch.experiments.maker import settings_of
from stepvar_patch.experiments.masks.page import (
    ScalePictures,
    SeenScale,
    write_mask_page,
    write_strip,
)
from stepvar_patch.experiments.plan import jobs
from stepvar_patch.experiments.pruning import resolve_pruning
from stepvar_patch.experiments.schema import GenerateConfig
from stepvar_patch.experiments.threads import using_threads
from stepvar_patch.policies.oracle import OraclePolicy
from stepvar_patch.policies.stepvar import LateLayerRun
from stepvar_patch.scores.layer_change import resize_scores
from stepvar_patch.scores.structure import principal_directions, structure_score
from stepvar_patch.scores.texture import texture_score


class Watched:
    """A policy that does as another one, and remembers what that decided.

    The maps are StepVAR's scores of what the policy looks at: the input of a scale, or what a layer
    of the scale before gave out.
    """

    def __init__(self, policy: PruningPolicy) -> None:
        self.policy = policy
        self.name = policy.name
        self.scales: dict[int, SeenScale] = {}

    def start(self, request: PolicyRequest) -> PolicyRun:
        self.scales = {
            si: SeenScale(
                grid=grid,
                structure=torch.zeros(grid[0] * grid[1]),
                texture=torch.zeros(grid[0] * grid[1]),
                kept=torch.zeros(grid[0] * grid[1]),
                run=False,
            )
            for si, grid in enumerate(request.schedule.grids)
        }
        return _WatchedRun(self.policy.start(request), request, self.scales)


class _WatchedRun:
    def __init__(
        self, inner: PolicyRun, request: PolicyRequest, scales: dict[int, SeenScale]
    ) -> None:
        self.inner, self.request, self.scales = inner, request, scales
        self.cached_tokens = inner.cached_tokens
        self.events = inner.events
        self.votes: list[Tensor] = []

    def plan_scale(self, si: int, view: ScaleView) -> ScalePlan:
        scored, seen = view.x[:1], view.grid
        if isinstance(self.inner, LateLayerRun) and self.inner.features is not None:
            scored, seen = self.inner.features[:1], self.inner.grid
        plan = self.inner.plan_scale(si, view)
        self.events = self.inner.events
        n = view.x.shape[1]
        self.votes = [] if plan.keep is None else [_mask(plan.keep, n)]
        kept = self.votes[0] if self.votes else torch.full((n,), float(plan.run))
        directions = principal_directions(scored)
        maps = (structure_score(scored, directions), texture_score(scored, seen, "mean3"))
        structure, texture = (resize_scores(scores, seen, view.grid)[0].cpu() for scores in maps)
        self.scales[si] = SeenScale(
            grid=view.grid, structure=structure, texture=texture, kept=kept, run=plan.run
        )
        return plan

    def plan_branch(self, si: int, layer: int, branch: Branch, x: Tensor) -> BranchPlan | None:
        plan = self.inner.plan_branch(si, layer, branch, x)
        n = x.shape[1]
        self.votes.append(torch.ones(n) if plan is None else _mask(plan.keep, n))
        self.scales[si] = replace(self.scales[si], kept=torch.stack(self.votes).mean(0))
        return plan

    def after(self, event: Event, si: int, layer: int, branch: Branch | None, data: Any) -> None:
        self.inner.after(event, si, layer, branch, data)


def _mask(keep: KeepSet, positions: int) -> Float[Tensor, " n"]:
    """1 at the first image's kept positions, else 0."""
    mask = torch.zeros(positions)
    mask[keep.indices[: keep.counts[0]].cpu()] = 1
    return mask


def run(config: GenerateConfig, load_pipeline: Callable[..., Any]) -> dict[str, Path]:
    """Draws the first prompt dense and pruned, and writes what was kept.

    Args:
        config: of a generate run, with a policy.
        load_pipeline: reads the model.

    Returns:
        ``strip`` → PNG, ``page`` → HTML.

    Raises:
        UserError: no policy, a mistake in the config, or a place that cannot be written.
    """
    if config.pruning is None:
        raise UserError("pruning is null; show-masks needs a policy, e.g. pruning=FILE")
    checked = check(config)
    folder = Path(config.output)
    make_folder(folder)
    pipeline = load_pipeline(
        config.model,
        tokenizer=config.tokenizer,
        text_encoder=config.text_encoder,
        device=checked.device,
        dtype=checked.dtype,
    )
    settings, policy = settings_of(config, pipeline), resolve_pruning(config, pipeline.config)
    assert policy is not None
    if isinstance(policy, OraclePolicy):
        raise UserError("pruning.kind is oracle, which show-masks cannot watch; give another kind")
    (job,) = islice(jobs(config), 1)
    watched = Watched(policy)
    with using_threads(config.threads if checked.device == "cpu" else None):
        dense = draw(pipeline, job, settings, None)
        pruned = draw(pipeline, job, settings, watched)
    pictures = []
    latent = torch.zeros_like(dense.latents[0][None])
    so_far: Tensor | None = None
    for si, seen in watched.scales.items():
        latent = pruned.latents[si][None] if si in pruned.latents else latent
        now, original = (
            ((image[0] + 1) / 2).clamp(0, 1)
            for image in map(pipeline.decode_tensor, (latent, dense.latents[si][None]))
        )
        so_far = now if so_far is None else so_far
        pictures.append(ScalePictures.of(si, seen, so_far, now, original))
        so_far = now
    strip, page = folder / f"{job.name}.masks.png", folder / f"{job.name}.masks.html"
    write_strip(strip, pictures)
    write_mask_page(page, pictures, job.row.prompt, policy.name, job.seed)
    return {"strip": strip, "page": page}
