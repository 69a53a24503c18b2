"""What the rounding of bf16 or fp8 changes of the pictures that fp32 draws."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infinity.errors import UserError
from infinity.io.prompts import read_prompts
from stepvar_patch.experiments.bench.environment import environment
from stepvar_patch.experiments.bench.files import make_folder_of, write_record
from stepvar_patch.experiments.bench.models import Models, check_weights
from stepvar_patch.experiments.bench.precision_draw import Drawn, draw, exact_fp32
from stepvar_patch.experiments.bench.precision_schema import PrecisionConfig
from stepvar_patch.experiments.bench.schema import ArmSettings, BenchConfig, arms
from stepvar_patch.experiments.estimate import Bootstrap, compact
from stepvar_patch.experiments.generate import Progress
from stepvar_patch.experiments.metrics.psnr import psnr
from stepvar_patch.experiments.metrics.ssim import ssim

FORMAT = "stepvar-bench-precision/1"


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

    def add(self, one: Drawn, other: Drawn) -> None:
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
    with exact_fp32():
        for start in range(0, len(prompts), config.batch_size):
            batch = prompts[start : start + config.batch_size]
            seeds = [config.seed + start + index for index in range(len(batch))]
            drawn: dict[str, Drawn] = {}
            for arm in (first, *others):
                try:
                    history = drawn[first.label].bits if drawn else None
                    drawn[arm.label] = draw(models, arm, batch, seeds, history, warm=start > 0)
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


def _equal(one: Sequence[Tensor], other: Sequence[Tensor]) -> list[list[float]]:
    """Share of equal bits, per image and scale."""
    shares = [(a == b).float().flatten(1).mean(dim=1) for a, b in zip(one, other, strict=True)]
    found: list[list[float]] = torch.stack(shares, dim=1).tolist()
    return found


def _short(value: float) -> float:
    """Five digits."""
    return float(f"{value:.5g}")
