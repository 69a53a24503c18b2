"""Fits SkipVAR's decision on a model's own runs: collect once, then fit for any threshold.

Shape legend: n runs, s savings (1, 2, … scales).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from infinity.errors import UserError
from infinity.pipeline import InfinityPipeline
from infinity.policy import PruningPolicy
from infinity.tokenizer.quantizer import resize
from stepvar_patch.policies.skipvar import (
    LogisticFit,
    SkipDecision,
    SkipVARPolicy,
    preview_grid,
)
from stepvar_patch.policies.skipvar_features import preview_features
from stepvar_patch.rules import ScaleRule

Similarity = Callable[[Tensor, Tensor], float]
"""``(picture, reference)``, each ``(3, H, W)`` in [0, 1] → higher = more alike: SSIM in the
published fit.
"""


@dataclass(frozen=True)
class SkipRuns:
    """What full and reduced runs of the same prompts and seeds show.

    Attributes:
        features: ``(n, 2)``, in the order of ``preview_features``.
        drop_similarity: ``(n, s)`` to the full run, with the last 1 … s scales left out.
        rows_similarity: ``(n, s)`` with the last 1 … s scales run without unconditional rows.
    """

    features: Float[Tensor, "n 2"]
    drop_similarity: Float[Tensor, "n s"]
    rows_similarity: Float[Tensor, "n s"]

    def decision(
        self, threshold: float, *, after_scale: int = -4, preview_share: float = 1 / 64
    ) -> SkipDecision:
        """The decision whose labels are the largest savings that stay at ``threshold`` or above.

        Args:
            threshold: lowest similarity accepted; published: SSIM 0.84, 0.86 and 0.88.
            after_scale, preview_share: those of :func:`collect`.
        """
        classes = self.drop_similarity.shape[1] + 1
        return SkipDecision(
            drop=fit(self.features, largest_saving(self.drop_similarity, threshold), classes),
            rows=fit(self.features, largest_saving(self.rows_similarity, threshold), classes),
            after_scale=after_scale,
            preview_share=preview_share,
        )


def largest_saving(similarity: Float[Tensor, "n s"], threshold: float) -> Int64[Tensor, " n"]:
    """Per run: the largest number of scales whose picture stays similar enough, or 0."""
    scales = torch.arange(1, similarity.shape[1] + 1, device=similarity.device)
    largest: Tensor = ((similarity >= threshold) * scales).amax(dim=1)
    return largest


def fit(
    features: Float[Tensor, "n 2"],
    labels: Int64[Tensor, " n"],
    classes: int,
    *,
    penalty: float = 1e-2,
) -> LogisticFit:
    """Multinomial logistic regression on standardised features, deterministic, in float64.

    Args:
        labels: in [0, classes).
        penalty: weight of the squared weights and biases per sample; it also keeps a class without
            samples finite, and unlikely.

    Raises:
        UserError: no samples, or a label out of range.

    Source: SkipVAR's default classifier, spec pruning-methods §4; the penalty is ours.
    """
    if not len(labels):
        raise UserError("skipvar: the fit has no samples; allowed: at least one run")
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise UserError(
            f"skipvar: the fit has labels {int(labels.min())} … {int(labels.max())}; allowed: "
            f"0 … {classes - 1}"
        )
    with torch.inference_mode(False), torch.enable_grad():
        x = features.detach().double().cpu().clone()
        y = labels.detach().cpu().clone()
        mean, scale = x.mean(dim=0), x.std(dim=0, correction=0).clamp_min(1e-9)
        standard = (x - mean) / scale
        weights = torch.zeros(classes, x.shape[1], dtype=torch.double, requires_grad=True)
        bias = torch.zeros(classes, dtype=torch.double, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [weights, bias], max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-9
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            fitted = torch.nn.functional.cross_entropy(standard @ weights.T + bias, y)
            value = fitted + penalty * (weights.square().sum() + bias.square().sum())
            value.backward()
            return value

        optimizer.step(loss)
    return LogisticFit(
        mean=tuple(mean.tolist()),
        scale=tuple(scale.tolist()),
        weights=tuple(tuple(row) for row in weights.tolist()),
        bias=tuple(bias.tolist()),
    )


def collect(
    pipeline: InfinityPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    similarity: Similarity,
    *,
    negative_prompts: Sequence[str | None] | None = None,
    after_scale: int = -4,
    preview_share: float = 1 / 64,
    after_run: Callable[[], None] = lambda: None,
    **settings: Any,
) -> SkipRuns:
    """Features and similarities of one full run and ``-after_scale - 1`` row-reduced runs a prompt.

    Leaving out the last scales needs no run of its own: the picture is decoded from the latent that
    the full run had before them. The pipeline's policy is restored at the end.

    Args:
        prompts, seeds: one seed per prompt.
        similarity: see :data:`Similarity`.
        negative_prompts: one per prompt; None = none.
        after_scale, preview_share: see :class:`SkipDecision`.
        after_run: called when a prompt is done.
        settings: of the pipeline's call: guidance, temperature, the picture's shape.
    """
    savings = range(1, -after_scale)
    patchify = pipeline.config.transformer.patchify
    shape = {name: settings[name] for name in _SHAPE if name in settings}
    grid = preview_grid(pipeline.schedule(**shape).latent_grids(patchify), preview_share)
    features, dropped, unguided = [], [], []
    negatives = [None] * len(prompts) if negative_prompts is None else negative_prompts
    for prompt, seed, negative in zip(prompts, seeds, negatives, strict=True):
        call = {**settings, "prompts": prompt, "seed": seed, "negative_prompt": negative}
        history = _history(pipeline, call, SkipVARPolicy(scales={}))
        decided = len(history) + after_scale
        older, newer = (
            pipeline.decode_tensor(resize(history[si], grid)) for si in (decided - 1, decided)
        )
        features.append(preview_features(older, newer)[0])
        full = _picture(pipeline, history[-1])
        early = [_picture(pipeline, history[-1 - saving]) for saving in savings]
        dropped.append([similarity(picture, full) for picture in early])
        reduced = [
            _picture(pipeline, _history(pipeline, call, _unguided(saving))[-1])
            for saving in savings
        ]
        unguided.append([similarity(picture, full) for picture in reduced])
        after_run()
    return SkipRuns(torch.stack(features), torch.tensor(dropped), torch.tensor(unguided))


_SHAPE = ("aspect_ratio", "height", "width", "resolution")


def _unguided(last: int) -> SkipVARPolicy:
    return SkipVARPolicy(scales={str(-k): ScaleRule(rows="cond") for k in range(1, last + 1)})


def _history(
    pipeline: InfinityPipeline, call: Mapping[str, Any], policy: PruningPolicy
) -> list[Tensor]:
    """Latents after every scale."""
    before, latents = pipeline.policy, list[Tensor]()
    pipeline.policy = policy
    try:
        pipeline(
            output_type="latent",
            callback_on_scale_end=lambda end: latents.append(end.latent),
            **call,
        )
    finally:
        pipeline.policy = before
    return latents


def _picture(pipeline: InfinityPipeline, latent: Tensor) -> Tensor:
    return (pipeline.decode_tensor(latent)[0].clamp(-1, 1) + 1) / 2
