"""Metrics of networks that a user brings: Inception, CLIP, HPS and ImageReward."""

from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from stepvar_patch.experiments.estimate import Bootstrap, Estimate
from stepvar_patch.experiments.metrics.clip import Clip
from stepvar_patch.experiments.metrics.hps import HumanPreference
from stepvar_patch.experiments.metrics.image_reward import ImageReward
from stepvar_patch.experiments.metrics.inception import Inception
from stepvar_patch.experiments.scorers.base import Batch, MetricFiles
from stepvar_patch.experiments.scorers.distances import (
    Protocol,
    fid,
    inception_score,
    kid,
    real_statistics,
    resize_for_inception,
)


class InceptionScorer:
    """FID, KID and the Inception score.

    Args:
        files: of the network and the real pictures; without these only the Inception score.
        device: where it runs.
        protocol: how pictures are resized.
        cache: keeps the statistics of the real pictures.

    Raises:
        UserError: the network's file is not what it should be.
    """

    def __init__(self, files: MetricFiles, device: str, protocol: Protocol, cache: Path) -> None:
        self._network = Inception.load(files.inception).to(device)
        self._files, self._device, self._protocol, self._cache = files, device, protocol, cache
        self._features: list[Tensor] = []
        self._logits: list[Tensor] = []

    def add(self, batch: Batch) -> None:
        features, logits = self._run(batch.images)
        self._features.append(features)
        self._logits.append(logits)

    @torch.inference_mode()
    def _run(self, images: UInt8[Tensor, "b h w 3"]) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = self._network(resize_for_inception(images, self._protocol))
        return found

    def results(self, bootstrap: Bootstrap) -> dict[str, Estimate]:
        features, logits = torch.cat(self._features), torch.cat(self._logits)
        found = {"inception_score": inception_score(logits, bootstrap)}
        if absent := self._files.missing("real_images"):
            return {**found, **dict.fromkeys(("fid", "kid"), Estimate.absent(absent))}
        real = real_statistics(
            Path(self._files.real_images),
            lambda images: self._run(images)[0],
            f"inception-{self._protocol}",
            self._cache,
            self._device,
        )
        return {**found, "fid": fid(features, real), "kid": kid(features, real, bootstrap)}


class ClipScorer:
    """CLIPScore (100 × cosine, not below 0) and CLIP-FID.

    Args:
        files: of the model and the real pictures.
        device: where it runs.
        cache: keeps the statistics of the real pictures.

    Raises:
        UserError: the folder holds no CLIP model.

    Source: Hessel et al. 2021, eq. 1 with weight 100; Kynkäänniemi et al. 2023 for the distance.
    """

    def __init__(self, files: MetricFiles, device: str, cache: Path) -> None:
        self._clip = Clip.load(files.clip, device)
        self._files, self._device, self._cache = files, device, cache
        self._features: list[Tensor] = []
        self._scores: list[float] = []

    def add(self, batch: Batch) -> None:
        images = self._clip.images(batch.images)
        cosines = (images * self._clip.texts(batch.prompts)).sum(-1)
        self._scores += (100 * cosines.clamp_min(0)).tolist()
        self._features.append(images)

    def results(self, bootstrap: Bootstrap) -> dict[str, Estimate]:
        found = {"clip_score": bootstrap.mean(self._scores)}
        if absent := self._files.missing("real_images"):
            return {**found, "clip_fid": Estimate.absent(absent)}
        folder, name = Path(self._files.real_images), f"clip-{Path(self._files.clip).name}"
        real = real_statistics(folder, self._clip.images, name, self._cache, self._device)
        return {**found, "clip_fid": fid(torch.cat(self._features), real)}


class PreferenceScorer:
    """A score per picture from a model of human choices.

    Args:
        metric: name of the result.
        model: scores pictures for their prompts.
    """

    def __init__(self, metric: str, model: HumanPreference | ImageReward) -> None:
        self._metric, self._model = metric, model
        self._scores: list[float] = []

    def add(self, batch: Batch) -> None:
        scores: Float[Tensor, " b"] = self._model(batch.images, batch.prompts)
        self._scores += scores.tolist()

    def results(self, bootstrap: Bootstrap) -> dict[str, Estimate]:
        return {self._metric: bootstrap.mean(self._scores)}
