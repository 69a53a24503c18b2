"""How many floating-point operations training takes; matrix products only."""

from collections.abc import Mapping

from infinity.config import TransformerConfig
from infinity.schedule import ScaleSchedule
from infinity.training.config import PhaseConfig


def training_flops(config: TransformerConfig, schedule: ScaleSchedule, scales: int) -> int:
    """Floating-point operations of one image's forward and backward pass.

    Args:
        config: of the transformer.
        schedule: token grids of the image.
        scales: number of leading scales trained.
    """
    counts, ends = schedule.tokens_per_scale[:scales], schedule.offsets[1 : scales + 1]
    width, tokens = config.width, sum(counts)
    linears = tokens * (6 * width**2 + 2 * width * config.ffn_width)
    attended = sum(count * end for count, end in zip(counts, ends, strict=True))
    block = linears + 2 * width * attended
    ends_cost = tokens * width * 3 * config.token_bits
    return 3 * 2 * (config.depth * block + ends_cost)


def phase_flops(
    config: TransformerConfig, schedules: Mapping[float, ScaleSchedule], phase: PhaseConfig
) -> float:
    """Mean over a phase's picture shapes, weighed by their shares, of :func:`training_flops`.

    Args:
        config: of the transformer.
        schedules: by aspect ratio.
        phase: picture shapes and number of scales.
    """
    shares = sum(aspect.share for aspect in phase.aspect_ratios)
    return sum(
        aspect.share / shares * training_flops(config, schedules[aspect.ratio], phase.scales)
        for aspect in phase.aspect_ratios
    )
