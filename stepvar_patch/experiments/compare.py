"""A picture drawn dense and pruned with the same random numbers, and how the two compare."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from infinity.policy import PruningPolicy
from stepvar_patch.experiments.maker import negative_prompts
from stepvar_patch.experiments.metrics.bit_agreement import bit_agreement, first_divergence
from stepvar_patch.experiments.metrics.flops import count_flops
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
        ms: time of the scale loop, without text encoder and decoder; None where it was not taken.
        flops: of the scale loop, likewise.
    """

    image: Float[Tensor, "3 h w"]
    codes: dict[int, Tensor]
    latents: dict[int, Tensor]
    ms: float | None
    flops: int | None


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


def draw(
    pipeline: Any,
    job: ImageJob,
    settings: Mapping[str, Any],
    policy: PruningPolicy | None,
    *,
    count: bool = False,
) -> Drawn:
    """One image, timed or counted; see :func:`draw_batch`."""
    return draw_batch(pipeline, [job], settings, policy, count=count)[0]


def draw_batch(
    pipeline: Any,
    batch: Sequence[ImageJob],
    settings: Mapping[str, Any],
    policy: PruningPolicy | None,
    *,
    count: bool = False,
) -> list[Drawn]:
    """Images drawn together, each with its share of the batch's time or operations.

    Args:
        pipeline: of the run.
        batch: prompts and seeds, at most as many as the pipeline draws together.
        settings: keyword arguments of the pipeline.
        policy: None is dense.
        count: count operations, which takes time, so that the time is not told. They are carried
            out by modules and attention whose operations the counter knows.

    Raises:
        UserError: the policy or a setting does not fit the model.
    """
    codes: dict[int, Tensor] = {}
    latents: dict[int, Tensor] = {}
    out: Any = None

    def keep(end: Any) -> None:
        codes[end.scale], latents[end.scale] = end.codes, end.latent

    drawing = replace(pipeline, attention="sdpa", engine="plain") if count else pipeline

    def work() -> None:
        nonlocal out
        out = draw_pruned(
            drawing,
            policy,
            [job.row.prompt for job in batch],
            negative_prompt=negative_prompts(batch),
            seed=[job.seed for job in batch],
            output_type="latent",
            callback_on_scale_end=keep,
            **settings,
        )

    flops = None
    if count:
        texts = [text for job in batch for text in (job.row.prompt, job.negative_prompt) if text]

        def encode() -> None:
            for text in texts:
                pipeline.text_encoder.encode([text])

        encode()  # where passes are recorded, now: neither count below may hold the recording
        encoding = count_flops(encode)
        flops = (count_flops(work) - encoding) // len(batch)
    else:
        work()
    images = ((pipeline.decode_tensor(out.latents) + 1) / 2).clamp(0, 1)
    ms = None if count else round(out.timings["scales"] / len(batch), 3)
    return [
        Drawn(
            image=image,
            codes={si: of_scale[index] for si, of_scale in codes.items()},
            latents={si: of_scale[index] for si, of_scale in latents.items()},
            ms=ms,
            flops=flops,
        )
        for index, image in enumerate(images)
    ]


def compare(pruned: Sequence[Drawn], dense: Sequence[Drawn]) -> list[Comparison]:
    """How pruned pictures differ from the dense ones of the same prompts and seeds."""
    images, originals = (torch.stack([one.image for one in batch]) for batch in (pruned, dense))
    found = []
    measured = zip(psnr(images, originals).tolist(), ssim(images, originals).tolist(), strict=True)
    for (psnr_db, similarity), one, original in zip(measured, pruned, dense, strict=True):
        agreement = tuple(
            bit_agreement(one.codes[si], codes) if si in one.codes else None
            for si, codes in original.codes.items()
        )
        found.append(
            Comparison(
                psnr_db=psnr_db,
                ssim=similarity,
                bit_agreement=agreement,
                first_divergence=first_divergence(agreement),
            )
        )
    return found
