"""From timed draws to the numbers of the JSON file."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import ceil
from statistics import median
from typing import Any

from stepvar_patch.experiments.bench.row import Flops, Sample, StageTimes
from stepvar_patch.experiments.bench.schema import Arm
from stepvar_patch.experiments.pruning import recorded

MODES = ("back_to_back", "paced")


@dataclass(kw_only=True)
class Row:
    """An arm at a batch size, as far as it is measured.

    Attributes:
        arm, batch_size: which.
        error: why it does not run (any more), or None.
        about: what is known before it is timed: policy, dtype, grids …
        kept: tokens computed per row and scale.
        flops: of the scale loop.
        peak_mib: memory in use at most during a draw, over the weights of all loaded models.
        samples: by mode.
        first_image: what a fresh process measured.
        kernels: of one draw, where asked for.
        stages_inside: of one draw whose graphs hold marks, where asked for on a GPU.
    """

    arm: Arm
    batch_size: int
    error: str | None = None
    about: dict[str, Any] = field(default_factory=dict)
    kept: list[float] | None = None
    flops: Flops | None = None
    peak_mib: float | None = None
    samples: dict[str, list[Sample]] = field(default_factory=lambda: {mode: [] for mode in MODES})
    first_image: dict[str, Any] | None = None
    kernels: dict[str, Any] | None = None
    stages_inside: StageTimes | None = None

    def median_ms(self, mode: str) -> float | None:
        """Of one draw of the whole batch; None before the first one."""
        totals = [sample.total_ms for sample in self.samples[mode]]
        return median(totals) if totals else None

    def to_json(self, baseline: "Row | None") -> dict[str, Any]:
        """The row as it stands in the file.

        Args:
            baseline: the row that speed-ups refer to, of the same batch size.
        """
        modes = {
            mode: _summary(samples, self, baseline, mode) if samples else None
            for mode, samples in self.samples.items()
        }
        flops = asdict(self.flops) if self.flops else None
        base = baseline.flops if baseline is not None else None
        if flops and flops["per_image"] and base is not None and base.per_image:
            flops["ratio"] = base.per_image / flops["per_image"]
        return {
            "arm": self.arm.label,
            "batch_size": self.batch_size,
            "error": self.error,
            **self.about,
            "kept_per_scale": self.kept,
            "flops": flops,
            "peak_over_weights_mib": _rounded(self.peak_mib),
            **modes,
            "first_image": self._first_image(baseline),
            "kernels": self.kernels,
            "stages_inside_ms": self._stages_inside(),
        }

    def _stages_inside(self) -> dict[str, float] | None:
        if self.stages_inside is None:
            return None
        total: dict[str, float] = {}
        for (stage, _), ms in self.stages_inside.items():
            total[stage] = total.get(stage, 0.0) + ms
        return {stage: round(ms, 4) for stage, ms in total.items()}

    def _first_image(self, baseline: "Row | None") -> dict[str, Any] | None:
        first = self.first_image
        if first is None or "error" in first or baseline is None or baseline is self:
            return first
        return {**first, "break_even_images": _break_even(self, baseline)}


def about(arm: Arm, drawer: Any) -> dict[str, Any]:
    """What an arm draws with, told once it is loaded."""
    pipeline, grids = drawer.pipeline, drawer.request.schedule.grids
    latent = drawer.request.schedule.latent_grids(drawer.request.patchify)[-1]
    patch = pipeline.config.tokenizer.patch_size
    return {
        "policy": recorded(drawer.policy),
        "dtype": str(pipeline.dtype).removeprefix("torch."),
        "attention": arm.attention or "auto",
        "guidance_scale": drawer.settings["guidance_scale"],
        "picture_px": [latent[0] * patch, latent[1] * patch],
        "grids": [list(grid) for grid in grids],
    }


def _summary(
    samples: Sequence[Sample], row: Row, baseline: Row | None, mode: str
) -> dict[str, Any]:
    totals = [sample.total_ms for sample in samples]
    middle, base = median(totals), baseline.median_ms(mode) if baseline is not None else None
    without = median(_without_text(sample) for sample in samples)
    names = list(dict.fromkeys(stage for sample in samples for stage, _ in sample.stages))
    scales = range(len(row.about["grids"]))
    return {
        "n": len(samples),
        "median_ms": round(middle, 4),
        "min_ms": round(min(totals), 4),
        "max_ms": round(max(totals), 4),
        "per_image_ms": round(middle / row.batch_size, 4),
        "without_text_ms": round(without, 4),
        "speedup": None if base is None else round(base / middle, 4),
        "stages_ms": {
            name: round(median(_of_stage(sample, name) for sample in samples), 4) for name in names
        },
        "per_scale_ms": {
            name: [
                round(median(sample.stages.get((name, si), 0.0) for sample in samples), 4)
                for si in scales
            ]
            for name in names
            if any((name, si) in samples[0].stages for si in scales)
        },
        "samples": [
            {
                "round": sample.round,
                "position": sample.position,
                "total_ms": round(sample.total_ms, 4),
            }
            for sample in samples
        ],
    }


def _of_stage(sample: Sample, name: str) -> float:
    return sum(ms for (stage, _), ms in sample.stages.items() if stage == name)


def _without_text(sample: Sample) -> float:
    return sample.total_ms - _of_stage(sample, "text")


def _break_even(row: Row, baseline: Row) -> int | None:
    """Images after which a fresh process with this arm is ahead of one with the baseline, loading
    included; None = never, or not known.
    """
    own, other = row.median_ms("back_to_back"), baseline.median_ms("back_to_back")
    first, second = row.first_image, baseline.first_image
    if own is None or other is None or not first or not second or "error" in second:
        return None
    late = (first["load_ms"] + first["first_ms"]) - (second["load_ms"] + second["first_ms"])
    # The second draw is one of its own, as it may be the one that is recorded.
    after = late + first.get("second_ms", own) - second.get("second_ms", other)
    gain = other - own
    if after <= 0:
        return row.batch_size * (1 if late <= 0 else 2)
    return row.batch_size * (2 + ceil(after / gain)) if gain > 0 else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)
