"""What a tokenizer is trained on: images as they are composed, or cached with their features."""

import itertools
import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from infinity.training.config import TrainTokenizerConfig
from infinity.training.image_cache import ImageCache, build_image_cache
from infinity.training.session import Session
from infinity.training.source import BatchStream, TrainingData

SEED_STRIDE = 100_003
"""Between the seeds of two processes' image sources."""


class TokenizerBatch(NamedTuple):
    """One step's arguments of :class:`infinity.training.tokenizer_objective.TokenizerObjective`.

    Attributes:
        image: in [-1, 1], channels last in memory.
        shown: which of the kept scales each image is decoded from.
        kept: scales that take part in the step.
        features: of the images where the encoder stays as it is; else None.
    """

    image: Float[Tensor, "b 3 H W"]
    shown: Bool[Tensor, "b kept"]
    kept: tuple[bool, ...]
    features: Float[Tensor, "b d h w"] | None


class TokenizerBatches:
    """Draws the batches of this process; seed, process and step fix each of them.

    Args:
        config: of the run.
        session: its process and device.
        data: image source.
        scales: of the schedule.
    """

    def __init__(
        self, config: TrainTokenizerConfig, session: Session, data: TrainingData, scales: int
    ) -> None:
        self._config, self._session, self._data, self._scales = config, session, data, scales
        self._seed = config.seed + SEED_STRIDE * session.rank
        self._cache: ImageCache | None = None

    def hold(
        self, features: Callable[[Float[Tensor, "b 3 H W"]], Float[Tensor, "b d h w"]]
    ) -> None:
        """Composes and encodes ``cache_images`` images once; all later batches are drawn from them.

        Args:
            features: the frozen encoder, with whatever normalisation belongs to it.
        """
        config, session = self._config, self._session
        images = max(config.batch_size, config.cache_images // session.processes)
        source = self._data.open(self._seed, None)
        self._cache = build_image_cache(source, features, images, session.device)
        session.log.write("cache", images=len(self._cache), seconds=self._cache.seconds)

    def after(self, step: int, scale_drop: float) -> Iterator[TokenizerBatch]:
        """The endless batches of a run that has taken ``step`` steps.

        Args:
            step: steps taken.
            scale_drop: probability that a scale other than the last is left out of a step.
        """
        images = self._images(step)
        for number in itertools.count(step):
            image, features = next(images)
            shown, kept = self._scales_of(number, image.shape[0], scale_drop)
            yield TokenizerBatch(
                image.contiguous(memory_format=torch.channels_last),
                shown.to(self._session.device, non_blocking=True),
                kept,
                features,
            )

    def _images(self, step: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        size = self._config.batch_size
        if self._cache is None:
            for image, _ in BatchStream(self._data, self._seed, size, step):
                yield image, None
        else:
            for number in itertools.count(step):
                yield self._cache.draw(self._seed, number, size)

    def _scales_of(
        self, step: int, images: int, scale_drop: float
    ) -> tuple[Bool[Tensor, "b kept"], tuple[bool, ...]]:
        """Which scales each image is decoded from, and which take part in the step: the latter are
        those of all processes.
        """
        config = self._config
        rng = random.Random(f"{config.seed}/{step}")
        kept = (*(rng.random() >= scale_drop for _ in range(self._scales - 1)), True)
        rng = random.Random(f"{config.seed}/{step}/{self._session.rank}")
        low, high = config.prefix_scales
        shown = torch.ones(images, self._scales, dtype=torch.bool)
        for row in shown:
            if rng.random() < config.prefix_probability:
                row[rng.randint(low, high) :] = False
        return shown[:, list(kept)], kept
