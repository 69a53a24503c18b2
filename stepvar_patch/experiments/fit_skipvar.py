"""``stepvar fit-skipvar``: SkipVAR's decision, fitted on a model's own runs, as a pruning file."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from infinity.errors import UserError, named
from infinity.io.files import check_writable, write_atomic
from stepvar_patch.experiments.check import check
from stepvar_patch.experiments.maker import settings_of
from stepvar_patch.experiments.metrics.ssim import ssim
from stepvar_patch.experiments.plan import jobs
from stepvar_patch.experiments.pruning import policy_request
from stepvar_patch.experiments.schema import GenerateConfig
from stepvar_patch.experiments.threads import using_threads
from stepvar_patch.policies.skipvar import LogisticFit, SkipDecision, SkipVARPolicy
from stepvar_patch.policies.skipvar_fit import collect, largest_saving
from stepvar_patch.progress import RunProgress


@dataclass(frozen=True, kw_only=True)
class FittedSkipVAR:
    """A fit and the runs behind it.

    Attributes:
        file: the pruning file.
        runs: prompts that it was fitted on.
        drop_labels: of them, how many may leave out the last 0, 1, 2 … scales.
        rows_labels: of them, how many may run the last 0, 1, 2 … scales without unconditional rows.
    """

    file: str
    runs: int
    drop_labels: tuple[int, ...]
    rows_labels: tuple[int, ...]


def run(
    config: GenerateConfig,
    threshold: float,
    images: int,
    file: Path,
    progress: RunProgress,
    load_pipeline: Callable[..., Any],
    *,
    after_scale: int = -4,
    preview_share: float = 1 / 64,
) -> FittedSkipVAR:
    """Draws the first prompts fully and without the late unconditional rows, fits, writes.

    Args:
        config: of a generate run, without a policy.
        threshold: lowest SSIM to the full picture that a saving may have.
        images: how many prompts.
        file: the pruning file to be written.
        progress: told of every prompt.
        load_pipeline: reads the model.
        after_scale, preview_share: see :class:`SkipDecision`.

    Raises:
        UserError: a policy in the config, a mistake in it, a decision that does not fit the
            schedule, or a place that cannot be written.
    """
    if config.pruning is not None:
        raise UserError("pruning: the fit draws its own runs; allowed: null")
    if not file.parent.is_dir():
        raise UserError(f"--output {file}: {file.parent} is not a folder")
    if file.is_dir():
        raise UserError(f"--output {file} is a folder; give a file")
    check_writable(file.parent, "--output")
    checked = check(config)
    request = policy_request(checked.model, config)
    blank = LogisticFit(mean=(0, 0), scale=(1, 1), weights=((0, 0),), bias=(0,))
    shown = SkipDecision(
        drop=blank, rows=blank, after_scale=after_scale, preview_share=preview_share
    )
    with named("--after-scale"):
        SkipVARPolicy(scales={}, decision=shown).start(request)
    drawn = list(islice(jobs(config), images))
    progress.start(len(drawn), 0)
    with progress.loading():
        pipeline = load_pipeline(
            config.model,
            tokenizer=config.tokenizer,
            text_encoder=config.text_encoder,
            device=checked.device,
            dtype=checked.dtype,
        )
    with using_threads(config.threads if checked.device == "cpu" else None):
        runs = collect(
            pipeline,
            [job.row.prompt for job in drawn],
            [job.seed for job in drawn],
            _similarity,
            negative_prompts=[job.negative_prompt for job in drawn],
            after_scale=after_scale,
            preview_share=preview_share,
            after_run=lambda: progress.advance(1),
            **settings_of(config, pipeline),
        )
    decision = runs.decision(threshold, after_scale=after_scale, preview_share=preview_share)
    policy = {
        "kind": "skipvar",
        "scales": {},
        "decision": json.loads(json.dumps(asdict(decision))),
        "target_speedup": None,
    }
    head = (
        f"# SkipVAR's decision for {pipeline.config.name}, fitted on {len(drawn)} prompts at SSIM "
        f"{threshold:g}\n# (stepvar fit-skipvar). It belongs to that model and resolution.\n"
    )
    text = head + yaml.safe_dump(policy, sort_keys=False, default_flow_style=None, width=100)
    write_atomic(file, lambda out: out.write(text.encode()))
    classes = -after_scale
    return FittedSkipVAR(
        file=str(file),
        runs=len(drawn),
        drop_labels=_counts(runs.drop_similarity, threshold, classes),
        rows_labels=_counts(runs.rows_similarity, threshold, classes),
    )


def _similarity(picture: Tensor, reference: Tensor) -> float:
    return float(ssim(picture[None], reference[None]))


def _counts(similarity: Tensor, threshold: float, classes: int) -> tuple[int, ...]:
    return tuple(largest_saving(similarity, threshold).bincount(minlength=classes).tolist())
