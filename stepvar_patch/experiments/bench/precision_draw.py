"""Batches of an arm, drawn from its own bits and from another run's.

Shape legend: B images, H × W positions of a scale, d bits of a position.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from infinity.loading import current
from infinity.policy import DensePolicy
from infinity.sampling.noise import PerImageNoise
from infinity.sampling.settings import resolve_settings
from infinity.text import TextFeatures
from infinity.tokenizer.quantizer import tokens_to_bits
from stepvar_patch.experiments.bench.models import Models
from stepvar_patch.experiments.bench.schema import Arm


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A batch drawn by an arm, twice: going on from its own bits, and from the first arm's.

    Attributes:
        images: values in [0, 1].
        bits: per scale, ``(B, H, W, d)``, own history.
        margins: per scale, difference of the two logits under the first arm's history.
        forced: per scale, the bits drawn under that history.
    """

    images: Float[Tensor, "b 3 h w"]
    bits: list[Tensor]
    margins: list[Tensor]
    forced: list[Tensor]


def draw(
    models: Models,
    arm: Arm,
    prompts: Sequence[str],
    seeds: Sequence[int],
    history: list[Tensor] | None,
    *,
    warm: bool,
) -> Drawn:
    """A batch of an arm; without a history its own is everybody's."""
    pipeline = models.pipeline(arm)
    pipeline.max_batch_size = len(prompts) if pipeline.device.type != "cpu" else 1
    replays = pipeline.current_engine().mode == "graphs"
    grids = pipeline.schedule().latent_grids(pipeline.config.transformer.patchify)
    ends: list[Any] = []
    for _ in range(3 if replays and not warm else 1):  # the third one is a replay
        ends.clear()
        out = pipeline(
            list(prompts),
            seed=list(seeds),
            output_type="latent",
            callback_on_scale_end=ends.append,
        )
    images = ((pipeline.decode_tensor(out.latents) + 1) / 2).clamp(0, 1)
    bits, margins = _by_scale(ends, grids, pipeline)
    if history is None:
        return Drawn(images=images, bits=bits, margins=margins, forced=bits)
    ends = []
    step = pipeline.max_batch_size
    for start in range(0, len(prompts), step):
        part = slice(start, start + step)
        with current(pipeline.device):
            _follow(pipeline, prompts[part], seeds[part], [b[part] for b in history], ends)
    forced, margins = _by_scale(ends, grids, pipeline)
    return Drawn(images=images, bits=bits, margins=margins, forced=forced)


def _follow(
    pipeline: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    history: Sequence[Tensor],
    ends: list[Any],
) -> None:
    """Draws with the bits of another run in place of its own; ``ends`` gets what comes of it."""
    schedule, transformer = pipeline.schedule(), pipeline.transformer
    sampling, depth = pipeline.config.sampling, pipeline.config.transformer.depth
    settings = resolve_settings(sampling, len(schedule), depth)
    rows = pipeline.text_encoder.encode(list(prompts)).split()
    text = TextFeatures.stack([part.to(pipeline.device) for part in rows])
    if settings.guided:
        text = transformer.with_unconditional(text)
    pipeline.current_engine().latents(
        text,
        schedule,
        settings,
        PerImageNoise(seeds, pipeline.device),
        DensePolicy(),
        images=len(prompts),
        gains=pipeline.tokenizer.gains,
        forced_bits=history,
        attention=pipeline.attention,
        on_scale_end=ends.append,
    )


def _by_scale(
    ends: Sequence[Any], grids: Sequence[tuple[int, int]], pipeline: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """Bits and logit differences of every scale, the batches of a call end to end."""
    patchify = pipeline.config.transformer.patchify
    bits, margins = [], []
    for si, grid in enumerate(grids):
        at = [end for end in ends if end.scale == si]
        bits.append(torch.cat([tokens_to_bits(end.bits, grid, patchify) for end in at]))
        margins.append(torch.cat([(end.logits[..., 1] - end.logits[..., 0]) for end in at]))
    return bits, margins


@contextmanager
def exact_fp32() -> Iterator[None]:
    """Convolutions in fp32 without TF32, which cuDNN would take."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
