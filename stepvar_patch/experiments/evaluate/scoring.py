"""Every metric of a drawn run that the files at hand allow, kept until anything changes."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from infinity.errors import UserError
from infinity.io.files import write_atomic
from stepvar_patch.experiments.codes import agreement, read_codes
from stepvar_patch.experiments.estimate import NO_DENSE, Bootstrap, Estimate, as_estimate
from stepvar_patch.experiments.evaluate.arms import DrawnArm
from stepvar_patch.experiments.maker import versions
from stepvar_patch.experiments.metrics.bit_agreement import first_divergence
from stepvar_patch.experiments.pictures import read_batches
from stepvar_patch.experiments.scorers.against_dense import AgainstDense
from stepvar_patch.experiments.scorers.base import Batch, MetricFiles, Scorer
from stepvar_patch.experiments.scorers.distances import Protocol
from stepvar_patch.experiments.scorers.embedded import METRICS, EmbeddedJudge, missing_reference
from stepvar_patch.experiments.scorers.timing import time_estimates

logger = logging.getLogger(__name__)

SCORES = "scores.json"
_CODE_VERSION = 2
"""Raised when a metric's computation changes, so that kept scores are made again."""


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How runs are scored.

    Attributes:
        files: what metrics need.
        protocol: how pictures are resized for Inception.
        device: where networks run.
        cache: folder for what several runs share.
    """

    files: MetricFiles = field(default_factory=MetricFiles)
    protocol: Protocol = "clean"
    device: str = "cpu"
    cache: Path = Path("outputs/eval")


def evaluate(arm: DrawnArm, dense: DrawnArm | None, scoring: Scoring) -> dict[str, Estimate]:
    """Every metric of a run: a value, or what is missing for it.

    Args:
        arm: to score.
        dense: the same prompts and seeds without pruning; None where there is none.
        scoring: files and device.

    Raises:
        UserError: a file that is there is not what it should be.
    """
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    timing = time_estimates(arm.rows, dense.rows if dense else None)
    key, kept = _key(arm, dense, scoring), _kept(arm.folder / SCORES)
    if kept is not None and kept[0] == key:
        return {**timing, **kept[1]}
    bootstrap = Bootstrap([row.id for row in arm.rows])
    scorers, metrics = _scorers(scoring)
    paths = [arm.folder / row.file for row in arm.rows]
    reference = [dense.folder / row.file for row in arm.rows] if dense else None
    _check_pairs(arm, dense)
    prompts, start = [row.prompt for row in arm.rows], 0
    originals = read_batches(reference) if reference else None
    for images in read_batches(paths):
        other = next(originals) if originals else None
        if other is not None and other.shape != images.shape:
            raise UserError(f"{paths[start]}: another size than its dense picture")
        batch = Batch(
            images=images.to(scoring.device),
            reference=other.to(scoring.device) if other is not None else None,
            prompts=prompts[start : start + len(images)],
        )
        for scorer in scorers:
            scorer.add(batch)
        start += len(images)
    for scorer in scorers:
        metrics |= scorer.results(bootstrap)
    metrics |= _bits(arm, dense, bootstrap)
    content = {"key": key, "metrics": {name: asdict(value) for name, value in metrics.items()}}
    text = json.dumps(content, indent=1, allow_nan=False)
    write_atomic(arm.folder / SCORES, lambda file: file.write(text.encode()))
    return {**timing, **metrics}


def _scorers(scoring: Scoring) -> tuple[list[Scorer], dict[str, Estimate]]:
    """The scorers whose files are there, and the metrics of the others as missing."""
    files, device = scoring.files, scoring.device
    absent: dict[str, Estimate] = {}
    found: list[Scorer] = [AgainstDense(files, device)]

    def offer(names: Sequence[str], lacking: str, make: Callable[[], Scorer]) -> None:
        if lacking:
            absent.update(dict.fromkeys(names, Estimate.absent(lacking)))
        else:
            found.append(make())

    offer(METRICS, missing_reference(files), lambda: EmbeddedJudge(files, device))

    def inception() -> Scorer:
        from stepvar_patch.experiments.scorers.learned import InceptionScorer

        return InceptionScorer(files, device, scoring.protocol, scoring.cache)

    def clip() -> Scorer:
        from stepvar_patch.experiments.scorers.learned import ClipScorer

        return ClipScorer(files, device, scoring.cache)

    def hps() -> Scorer:
        from stepvar_patch.experiments.metrics.hps import HumanPreference
        from stepvar_patch.experiments.scorers.learned import PreferenceScorer

        return PreferenceScorer("hps", HumanPreference(files.hps, files.clip, device))

    def image_reward() -> Scorer:
        from stepvar_patch.experiments.metrics.image_reward import ImageReward
        from stepvar_patch.experiments.scorers.learned import PreferenceScorer

        model = ImageReward(files.image_reward, files.bert, device)
        return PreferenceScorer("image_reward", model)

    offer(("fid", "kid", "inception_score"), files.missing("inception"), inception)
    offer(("clip_score", "clip_fid"), files.missing("clip"), clip)
    offer(("hps",), files.missing("hps", "clip"), hps)
    offer(("image_reward",), files.missing("image_reward", "bert"), image_reward)
    return found, absent


def _check_pairs(arm: DrawnArm, dense: DrawnArm | None) -> None:
    if dense is None:
        return
    there = {row.file: row.prompt for row in dense.rows}
    for row in arm.rows:
        if there.get(row.file) != row.prompt:
            raise UserError(
                f"{dense.folder}: has no picture {row.file} of {row.prompt!r}, which {arm.folder} "
                "has; compare runs of the same prompts and seeds"
            )


def _bits(arm: DrawnArm, dense: DrawnArm | None, bootstrap: Bootstrap) -> dict[str, Estimate]:
    """Share of equal bits at the last scale (all scales in ``per_scale``), and where they part."""
    names = ("bits_last", "first_divergence")
    if dense is None:
        return dict.fromkeys(names, Estimate.absent(NO_DENSE))
    shares: list[tuple[float | None, ...]] = []
    for row in arm.rows:
        name = row.file.removesuffix(".png")
        codes, reference = read_codes(arm.folder, name), read_codes(dense.folder, name)
        if codes is None or reference is None:
            lacking = dense.folder if codes else arm.folder
            absent = Estimate.absent(f"codes of {name} in {lacking} (stepvar eval writes them)")
            return dict.fromkeys(names, absent)
        shares.append(agreement(codes, reference))
    table = np.array(shares, dtype=np.float64)
    per_scale = tuple(
        None if np.isnan(column).any() else float(column.mean()) for column in table.T
    )
    diverged = [scale for part in shares if (scale := first_divergence(part)) is not None]
    last = Estimate.absent("codes of the last scale, which is left out")
    if per_scale[-1] is not None:
        last = bootstrap.mean(table[:, -1])
    first = Estimate(value=float(min(diverged)), n=len(shares)) if diverged else None
    return {
        "bits_last": Estimate(**{**asdict(last), "per_scale": per_scale}),
        "first_divergence": first or Estimate.absent("no bit differs from dense"),
    }


def _key(arm: DrawnArm, dense: DrawnArm | None, scoring: Scoring) -> str:
    what = {
        "code": [_CODE_VERSION, versions()["torch"], torch.device(scoring.device).type],
        "pictures": [row.sha256 for row in arm.rows],
        "dense": [row.sha256 for row in dense.rows] if dense else None,
        "files": scoring.files.stamp(),
        "protocol": scoring.protocol,
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _kept(path: Path) -> tuple[str, dict[str, Estimate]] | None:
    try:
        content = json.loads(path.read_text())
        metrics = {name: as_estimate(value) for name, value in content["metrics"].items()}
        return content["key"], metrics
    except (OSError, ValueError, TypeError, KeyError):
        return None
