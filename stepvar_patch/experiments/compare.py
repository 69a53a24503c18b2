"""A picture drawn dense and pruned with the same random numbers, and how the two compare."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from infinity.policy import PruningPolicy
from stepvar_patch.experiments.metrics.bit_agreement import bit_agreement, first_divergence
from stepvar_patch.experiments.metrics.psnr import psnr
from stepvar_patch.experiments.metrics.ssim import ssim
from stepvar_patch.experiments.plan import ImageJob
from stepvar_patch.experiments.pruning import draw_pruned


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One picture and how it came about.

    Attributes:
        image: values in [0, 1].
        codes: of every executed scale.
        latents: sum of the codes after every executed scale, on the final grid.
        ms: time of the scale loop, without text encoder and decoder.
    """

    image: Float[Tensor, "3 h w"]
    codes: dict[int, Tensor]
    latents: dict[int, Tensor]
    ms: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Quality of a pruned picture against the dense one.

    Attributes:
        psnr_db: of the pixels.
        ssim: of the luma.
        bit_agreement: share of equal bits per scale of the schedule; None where the pruned run drew
            nothing.
        first_divergence: first scale whose bits differ; None when none does.
    """

    psnr_db: float
    ssim: float
    bit_agreement: tuple[float | None, ...]
    first_divergence: int | None


def call(
    pipeline: Any,
    job: ImageJob,
    settings: Mapping[str, Any],
    policy: PruningPolicy | None,
    **more: Any,
) -> Any:
    """The pipeline's output for one image of a run."""
    negative = [job.negative_prompt] if job.negative_prompt else None
    given = {"negative_prompt": negative, "seed": [job.seed], **settings, **more}
    return draw_pruned(pipeline, policy, [job.row.prompt], **given)


def draw(
    pipeline: Any, job: ImageJob, settings: Mapping[str, Any], policy: PruningPolicy | None
) -> Drawn:
    """One image, timed.

    Args:
        pipeline: of the run.
        job: prompt and seed.
        settings: keyword arguments of the pipeline.
        policy: None is dense.

    Raises:
        UserError: the policy or a setting does not fit the model.
    """
    codes: dict[int, Tensor] = {}
    latents: dict[int, Tensor] = {}

    def keep(end: Any) -> None:
        codes[end.scale], latents[end.scale] = end.codes[0], end.latent[0]

    out = call(pipeline, job, settings, policy, output_type="pt", callback_on_scale_end=keep)
    image = out.images[0].clamp(0, 1)
    return Drawn(image=image, codes=codes, latents=latents, ms=out.timings["scales"])


def compare(pruned: Drawn, dense: Drawn) -> Comparison:
    """How a pruned picture differs from the dense one of the same prompt and seed."""
    agreement = tuple(
        bit_agreement(pruned.codes[si], codes) if si in pruned.codes else None
        for si, codes in dense.codes.items()
    )
    return Comparison(
        psnr_db=psnr(pruned.image, dense.image),
        ssim=ssim(pruned.image, dense.image),
        bit_agreement=agreement,
        first_divergence=first_divergence(agreement),
    )
