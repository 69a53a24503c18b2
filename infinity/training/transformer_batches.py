"""What a transformer is trained on: cached latents of every picture shape, and batches of them.

Shape legend: B images, L tokens of all trained scales, N text slots, D bits per token.

Source: spec infinity-transformer §11; Infinity (arXiv 2412.04431), sec. 3.4.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from infinity.errors import UserError
from infinity.schedule import ScaleSchedule, scale_schedule
from infinity.text import TextEncoder
from infinity.tokenizer.autoencoder import BSQTokenizer
from infinity.tokenizer.quantizer import self_correction
from infinity.training.config import PhaseConfig, TrainTransformerConfig
from infinity.training.flip_bits import flip_bits
from infinity.training.latents import CacheTimes, LatentCache, build_cache
from infinity.training.session import Session
from infinity.training.source import TrainingData

SEED_STRIDE = 7_919
"""Between the seeds of two processes' image sources."""


def phase_schedules(config: TrainTransformerConfig) -> dict[float, ScaleSchedule]:
    """The schedule of every aspect ratio that a phase has, in order of appearance.

    Raises:
        UserError: a phase asks for more scales than the resolution has.
    """
    schedules = {
        aspect.ratio: scale_schedule(aspect.ratio, config.resolution, config.model.rope_reference)
        for phase in config.phases
        for aspect in phase.aspect_ratios
    }
    scales = len(next(iter(schedules.values())))
    if any(phase.scales > scales for phase in config.phases):
        raise UserError(
            f"phases: {max(p.scales for p in config.phases)} scales asked for, resolution "
            f"{config.resolution} has {scales}."
        )
    return schedules


def latent_caches(
    config: TrainTransformerConfig,
    session: Session,
    schedules: Mapping[float, ScaleSchedule],
    data: TrainingData,
    tokenizer: BSQTokenizer,
    text_encoder: TextEncoder,
) -> Iterator[tuple[float, LatentCache, CacheTimes]]:
    """This process's examples of one picture shape after the other: ratio, cache and its times.

    A shape's part of ``cache_images`` follows from its largest share in any phase. Only the first
    shape is worth compiling the encoder for.

    Args:
        config: of the run.
        session: each of its processes opens an image source of its own.
        schedules: by aspect ratio.
        data: image source.
        tokenizer: frozen; its memory format becomes channels last.
        text_encoder: frozen; must have ``encode_batch``.

    Raises:
        UserError: the captions need more text slots than the model has.
    """
    shares = {
        ratio: max(a.share for p in config.phases for a in p.aspect_ratios if a.ratio == ratio)
        for ratio in schedules
    }
    tokenizer = tokenizer.to(memory_format=torch.channels_last)
    seed, stance = config.seed + SEED_STRIDE * session.rank, "default"
    for ratio, schedule in schedules.items():
        images = int(config.cache_images * (shares[ratio] / sum(shares.values())))
        grids = schedule.latent_grids(config.model.patchify)
        height, width = (side * tokenizer.config.patch_size for side in grids[-1])
        with torch.compiler.set_stance(stance):
            cache, times = build_cache(
                data.open(seed, (height, width)),
                tokenizer,
                text_encoder,  # type: ignore[arg-type]
                max(1, images // session.processes),
                grids,
                session.device,
            )
        if cache.text.shape[1] > config.model.text_max_tokens:
            raise UserError(
                f"model.text_max_tokens: {config.model.text_max_tokens}; the captions need "
                f"{cache.text.shape[1]}."
            )
        yield ratio, cache, times
        stance = "force_eager"


class TransformerBatch(NamedTuple):
    """One step's arguments of :class:`infinity.training.teacher_forcing.TransformerObjective`.

    Attributes:
        inputs: ``(B, L - 1, D)`` latents resampled to scales 2…S, as tokens.
        labels: ``(B, L, D)`` bits of scales 1…S.
        text: ``(B, N, width)`` half-precision features, padded to N slots.
        valid: ``(B, N)`` which slots hold a row.
        dropped: ``(B,)`` images whose text is dropped.
    """

    inputs: Float[Tensor, "b l_in bits"]
    labels: Bool[Tensor, "b l bits"]
    text: Float[Tensor, "b n text"]
    valid: Bool[Tensor, "b n"]
    dropped: Bool[Tensor, " b"]


@dataclass(frozen=True, kw_only=True)
class TransformerBatches:
    """Draws batches from the latent caches.

    Attributes:
        config: of the run.
        schedules, caches: by aspect ratio.
        gains: the tokenizer's code amplitude per scale; None for unit-norm codes.
        rank, processes: whose batches these are, and among how many.
    """

    config: TrainTransformerConfig
    schedules: Mapping[float, ScaleSchedule]
    caches: Mapping[float, LatentCache]
    gains: Float[Tensor, " scales"] | None
    rank: int
    processes: int

    @torch.no_grad()
    def draw(self, number: int, phase: PhaseConfig, step: int) -> tuple[float, TransformerBatch]:
        """Aspect ratio and batch of a step.

        A pure function of the seed, the process, the phase and the step; the aspect ratio is that
        of all processes.

        Args:
            number: of the phase.
            phase: picture shapes, scales and batch size.
            step: of the phase.
        """
        config, size = self.config, phase.batch_size
        (aspect,) = random.Random(f"{config.seed}/{number}/{step}").choices(
            phase.aspect_ratios, [aspect.share for aspect in phase.aspect_ratios]
        )
        cache, schedule = self.caches[aspect.ratio], self.schedules[aspect.ratio]
        device = cache.features.device
        seed = ((config.seed * 64 + number) * 2**32 + step) * self.processes + self.rank
        generator = torch.Generator(device).manual_seed(seed)
        rows = torch.randint(len(cache), (size,), generator=generator, device=device)
        features, text, valid = cache.batch(rows)
        inputs, labels = self_correction(
            features,
            schedule.latent_grids(config.model.patchify)[: phase.scales],
            flip_bits(config.self_correction, size, phase.scales, generator),
            patchify=config.model.patchify,
            gains=self.gains,
        )
        dropped = torch.rand(size, generator=generator, device=device) < config.condition_dropout
        return aspect.ratio, TransformerBatch(inputs, labels, text, valid, dropped)
