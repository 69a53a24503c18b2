"""Results of ``stepvar bench``: times, operations and memory of arms side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infinity.errors import UserError
from stepvar_patch.experiments.report.files import fit
from stepvar_patch.experiments.report.model import Arm, Bars, Profile, Source, Speed, Table

_FORMAT = "stepvar-bench/"
_HEAD = ("arm", "ms/image", "min … max", "speed-up", "fewer FLOPs", "TFLOP", "peak MiB")
_STAGES = (
    *("text", "conditioning", "next_input", "select", "pack", "blocks", "restore", "head"),
    *("sampling", "decode"),
)


@dataclass(frozen=True, kw_only=True)
class _Times:
    median_ms: float
    min_ms: float
    max_ms: float
    speedup: float | None = None
    stages_ms: dict[str, float] = field(default_factory=dict)
    per_scale_ms: dict[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Flops:
    per_image: float | None = None
    ratio: float | None = None


@dataclass(frozen=True, kw_only=True)
class _Row:
    arm: str
    batch_size: int
    error: str | None = None
    grids: tuple[tuple[int, int], ...] = ()
    kept_per_scale: tuple[float, ...] | None = None
    flops: _Flops | None = None
    peak_over_weights_mib: float | None = None
    back_to_back: _Times | None = None


@dataclass(frozen=True, kw_only=True)
class _File:
    command: str
    environment: dict[str, Any]
    rows: tuple[_Row, ...]
    note: str | None = None


def is_bench(value: dict[str, Any]) -> bool:
    """Whether a JSON object was written by ``stepvar bench``."""
    return str(value.get("format")).startswith(_FORMAT)


def read_bench(path: Path, value: dict[str, Any]) -> Source:
    """What a benchmark has to show.

    Raises:
        UserError: a field is missing or of the wrong kind, or no arm ran.
    """
    file = fit(_File, value, path)
    timed = {_label(row, file.rows): row for row in file.rows if row.back_to_back is not None}
    if not timed:
        raise UserError(f"{path}: rows: none has times; every arm failed or is not measured yet")
    if any(row.batch_size < 1 for row in file.rows):
        raise UserError(f"{path}: rows: batch_size must be at least 1")
    failed = [[_label(row, file.rows), row.error] for row in file.rows if row.error]
    tables = [Table(title="", head=_HEAD, rows=[_cells(name, row) for name, row in timed.items()])]
    if failed:
        tables.append(
            Table(title="arms that do not run", head=("arm", "why"), rows=failed, prose=True)
        )
    return Source(
        title=f"Benchmark: {path.stem}",
        path=str(path),
        summary=f"{len(timed)} rows, drawn by turns in one process. {_sentence(file.note)}".strip(),
        commands=(file.command,),
        environment={name: str(value) for name, value in file.environment.items()},
        arms=[_arm(name, row) for name, row in timed.items()],
        profiles=_kept(timed),
        bars=[*_by_stage(path.stem, timed), *_by_scale(path.stem, timed)],
        tables=tables,
    )


def _label(row: _Row, rows: Sequence[_Row]) -> str:
    several = len({other.batch_size for other in rows}) > 1
    return f"{row.arm}, batch {row.batch_size}" if several else row.arm


def _arm(name: str, row: _Row) -> Arm:
    speeds: dict[Speed, float] = {}
    if row.back_to_back is not None and row.back_to_back.speedup:
        speeds["time"] = row.back_to_back.speedup
    if row.flops is not None and row.flops.ratio:
        speeds["flops"] = row.flops.ratio
    return Arm(label=name, series=name, speeds=speeds)


def _cells(name: str, row: _Row) -> list[str]:
    times, flops = row.back_to_back, row.flops or _Flops()
    assert times is not None
    n = row.batch_size
    return [
        name,
        f"{times.median_ms / n:.1f}",
        f"{times.min_ms / n:.1f} … {times.max_ms / n:.1f}",
        _told(times.speedup, "{:.2f}×"),
        _told(flops.ratio, "{:.2f}×"),
        _told(flops.per_image, "{:.3g}", 1e-12),
        _told(row.peak_over_weights_mib, "{:.0f}"),
    ]


def _by_stage(title: str, rows: Mapping[str, _Row]) -> list[Bars]:
    """Every stage that takes a visible share in some arm; the others together."""
    times = {name: row.back_to_back.stages_ms for name, row in rows.items() if row.back_to_back}
    named = dict.fromkeys(stage for stages in times.values() for stage in stages)
    order = sorted(named, key=lambda s: _STAGES.index(s) if s in _STAGES else len(_STAGES))
    seen = [s for s in order if any(t.get(s, 0) > 0.01 * sum(t.values()) for t in times.values())]
    shown = {}
    for name, stages in times.items():
        n = rows[name].batch_size
        parts = [stages.get(stage, 0.0) / n for stage in seen]
        shown[name] = [*parts, max(0.0, sum(stages.values()) / n - sum(parts))]
    return (
        [Bars(title=f"{title}, ms per image by stage", stages=(*seen, "rest"), rows=shown)]
        if seen
        else []
    )


def _by_scale(title: str, rows: Mapping[str, _Row]) -> list[Bars]:
    """Time in every scale; arms with other grids get a chart of their own."""
    groups: dict[tuple[str, ...], dict[str, list[float]]] = {}
    for name, row in rows.items():
        times = row.back_to_back
        if times is None or not times.per_scale_ms:
            continue
        scales = len(next(iter(times.per_scale_ms.values())))
        stages = tuple(f"{h}×{w}" for h, w in row.grids) or tuple(map(str, range(scales)))
        parts = [part for part in times.per_scale_ms.values() if len(part) == len(stages)]
        totals = [sum(column) / row.batch_size for column in zip(*parts, strict=True)]
        if totals:
            groups.setdefault(stages, {})[name] = totals
    title = f"{title}, ms per image by scale"
    return [Bars(title=title, stages=stages, rows=found) for stages, found in groups.items()]


def _kept(rows: Mapping[str, _Row]) -> list[Profile]:
    lines = {}
    for name, row in rows.items():
        sizes = [h * w for h, w in row.grids]
        if row.kept_per_scale is not None and len(sizes) == len(row.kept_per_scale) and all(sizes):
            pairs = zip(row.kept_per_scale, sizes, strict=True)
            lines[name] = [kept / size for kept, size in pairs]
    return [Profile(title="share of tokens computed", lines=lines)] if lines else []


def _told(value: float | None, form: str, factor: float = 1.0) -> str:
    return "–" if value is None else form.format(value * factor)


def _sentence(text: str | None) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""
