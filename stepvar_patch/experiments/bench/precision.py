"""What the rounding of bf16 or fp8 changes of the pictures that fp32 draws.

Shape legend: B images, L positions of a scale, D bits per token.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from annotated_types import Ge, Le, MinLen
from jaxtyping import Float
from pydantic import ConfigDict
from torch import Tensor

from infinity.config import EngineMode
from infinity.errors import UserError
from infinity.io.prompts import MAX_SEED, read_prompts
from infinity.loading import current
from infinity.policy import DensePolicy
from infinity.sampling.noise import PerImageNoise
from infinity.sampling.settings import resolve_settings
from infinity.text import TextFeatures
from infinity.tokenizer.quantizer import tokens_to_bits
from stepvar_patch.experiments.bench.environment import environment
from stepvar_patch.experiments.bench.files import make_folder_of, write_record
from stepvar_patch.experiments.bench.models import Models, check_weights
from stepvar_patch.experiments.bench.schema import RANDOM, Arm, ArmSettings, BenchConfig, arms
from stepvar_patch.experiments.estimate import Bootstrap, compact
from stepvar_patch.experiments.generate import Progress
from stepvar_patch.experiments.metrics.psnr import psnr
from stepvar_patch.experiments.metrics.ssim import ssim
from stepvar_patch.experiments.problems import nearest
from stepvar_patch.experiments.pruning import STRICT
from stepvar_patch.experiments.schema import Device, Dtype, FilePath

FORMAT = "stepvar-bench-precision/1"


@dataclass(frozen=True, kw_only=True)
class PrecisionArm:
    """How an arm computes; ``None`` is the default of ``stepvar bench``.

    Attributes:
        dtype, engine, fp8: as of a bench file.
        against: earlier arms that it is compared with; None is the first of all.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    dtype: Dtype | None = None
    engine: EngineMode | None = None
    fp8: bool | None = None
    against: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class PrecisionConfig:
    """One run of ``stepvar bench precision``.

    Attributes:
        weights: model directory.
        output: JSON file.
        prompts: file of prompts.
        images: how many are drawn, the first of the file.
        batch_size: drawn at once on a GPU.
        seed: of the first image; the others count up from it.
        device: ``None`` takes a GPU if there is one.
        arms: label → how it computes; the first one gives the history of all.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    weights: FilePath
    output: FilePath
    prompts: FilePath
    images: Annotated[int, Ge(1), Le(10_000)] = 64
    batch_size: Annotated[int, Ge(1), Le(1024)] = 32
    seed: Annotated[int, Ge(0), Le(MAX_SEED)] = 0
    device: Device | None = None
    arms: Annotated[Mapping[str, PrecisionArm], MinLen(2)]

    def __post_init__(self) -> None:
        if self.weights == RANDOM:
            raise ValueError("weights is random; what a precision changes is seen on trained ones")
        before: list[str] = []
        for label, arm in self.arms.items():
            for name in arm.against or ():
                if name not in before:
                    told = nearest(name, before) if before else "the first arm has none before it"
                    raise ValueError(f"arms.{label}.against names {name!r}; {told}")
            before.append(label)


@dataclass(frozen=True, kw_only=True)
class _Drawn:
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


@dataclass(kw_only=True)
class _Pair:
    """What is known of an arm against another."""

    arm: str
    against: str
    psnr_db: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    bits: list[list[float]] = field(default_factory=list)
    forced: list[list[float]] = field(default_factory=list)
    errors: list[list[float]] = field(default_factory=list)
    norms: list[list[float]] = field(default_factory=list)

    def add(self, one: _Drawn, other: _Drawn) -> None:
        """Takes a batch."""
        self.psnr_db += psnr(one.images, other.images).tolist()
        self.ssim += ssim(one.images, other.images).tolist()
        self.bits += _equal(one.bits, other.bits)
        self.forced += _equal(one.forced, other.forced)
        pairs = list(zip(one.margins, other.margins, strict=True))
        self.errors.append([float((a - b).double().square().sum()) for a, b in pairs])
        self.norms.append([float(b.double().square().sum()) for _, b in pairs])

    def to_json(self) -> dict[str, Any]:
        """The pair as it stands in the file."""
        boot = Bootstrap([str(index) for index in range(len(self.bits))])
        free, forced = np.array(self.bits), np.array(self.forced)
        errors, norms = (np.array(x).sum(axis=0) for x in (self.errors, self.norms))
        return {
            "arm": self.arm,
            "against": self.against,
            "images": len(self.bits),
            "same_history": {
                "logit_error": _short((errors.sum() / norms.sum()) ** 0.5),
                "logit_error_per_scale": [_short(x) for x in (errors / norms) ** 0.5],
                "bits": compact(boot.mean(forced.mean(axis=1))),
                "bits_per_scale": [_short(x) for x in forced.mean(axis=0)],
            },
            "own_history": {
                "psnr_db": compact(boot.mean(self.psnr_db)),
                "ssim": compact(boot.mean(self.ssim)),
                "bits_last": compact(boot.mean(free[:, -1])),
                "bits_per_scale": [_short(x) for x in free.mean(axis=0)],
            },
        }


def run_precision(config: PrecisionConfig, progress: Progress, load: Any, command: str) -> Any:
    """Draws every arm's pictures, compares them, and writes the file.

    Every arm draws each batch twice, with the same random numbers: going on from its own bits,
    which gives the picture, and with the bits of the first arm in place of its own at every scale,
    which shows what a single scale's rounding does. Recorded calls are replays in the former;
    the latter is launched kernel by kernel.

    Args:
        config: of the measurement.
        progress: told of every picture of every arm.
        load: reads a model directory.
        command: that the file names.

    Returns:
        What the file holds.

    Raises:
        UserError: weights, prompts or device that are not there, or a first arm that cannot run.
    """
    bench = BenchConfig(
        weights=config.weights,
        output=config.output,
        device=config.device,
        baseline=next(iter(config.arms)),
        arms={
            label: ArmSettings(dtype=arm.dtype, engine=arm.engine, fp8=arm.fp8)
            for label, arm in config.arms.items()
        },
    )
    check_weights(bench)
    prompts = [row.prompt for row in islice(read_prompts(Path(config.prompts)), config.images)]
    path, models = Path(config.output), Models(bench, load)
    make_folder_of(path)
    first, *others = arms(bench)
    device = models.pipeline(first).device
    pairs = [
        _Pair(arm=arm.label, against=name)
        for arm in others
        for name in config.arms[arm.label].against or (first.label,)
    ]
    refused: dict[str, str] = {}
    progress.start(len(prompts) * (1 + len(others)), 0)
    with _exact_fp32():
        for start in range(0, len(prompts), config.batch_size):
            batch = prompts[start : start + config.batch_size]
            seeds = [config.seed + start + index for index in range(len(batch))]
            drawn: dict[str, _Drawn] = {}
            for arm in (first, *others):
                try:
                    history = drawn[first.label].bits if drawn else None
                    drawn[arm.label] = _draw(models, arm, batch, seeds, history, warm=start > 0)
                except UserError as error:
                    if arm is first:
                        raise
                    refused[arm.label] = str(error)
                progress.advance(len(batch))
            for pair in pairs:
                if pair.arm in drawn and pair.against in drawn:
                    pair.add(drawn[pair.arm], drawn[pair.against])
    record = {
        "format": FORMAT,
        "command": command,
        "config": asdict(config),
        "environment": environment(device),
        "model": {"name": models.opened[0].config.name, "digest": models.opened[0].digest},
        "not_run": refused,
        "pairs": [pair.to_json() for pair in pairs if pair.bits],
    }
    write_record(path, record)
    return record


def markdown(record: Mapping[str, Any]) -> str:
    """The pairs as a table."""
    lines = [
        "| | logits, same history | bits | PSNR dB, own history | SSIM | bits, last scale |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for pair in record["pairs"]:
        same, own = pair["same_history"], pair["own_history"]
        lines.append(
            f"| {pair['arm']} against {pair['against']} | {100 * same['logit_error']:.2f} % | "
            f"{100 * same['bits']['value']:.2f} % | {own['psnr_db']['value']:.1f} | "
            f"{own['ssim']['value']:.4f} | {100 * own['bits_last']['value']:.1f} % |"
        )
    lines += [f"\n{label} does not run: {why}" for label, why in record["not_run"].items()]
    return "\n".join(lines) + "\n"


def _draw(
    models: Models,
    arm: Arm,
    prompts: Sequence[str],
    seeds: Sequence[int],
    history: list[Tensor] | None,
    *,
    warm: bool,
) -> _Drawn:
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
        return _Drawn(images=images, bits=bits, margins=margins, forced=bits)
    ends = []
    step = pipeline.max_batch_size
    for start in range(0, len(prompts), step):
        part = slice(start, start + step)
        with current(pipeline.device):
            _follow(pipeline, prompts[part], seeds[part], [b[part] for b in history], ends)
    forced, margins = _by_scale(ends, grids, pipeline)
    return _Drawn(images=images, bits=bits, margins=margins, forced=forced)


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


def _equal(one: Sequence[Tensor], other: Sequence[Tensor]) -> list[list[float]]:
    """Share of equal bits, per image and scale."""
    shares = [(a == b).float().flatten(1).mean(dim=1) for a, b in zip(one, other, strict=True)]
    found: list[list[float]] = torch.stack(shares, dim=1).tolist()
    return found


@contextmanager
def _exact_fp32() -> Iterator[None]:
    """Convolutions in fp32 without TF32, which cuDNN would take."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _short(value: float) -> float:
    """Five digits."""
    return float(f"{value:.5g}")
