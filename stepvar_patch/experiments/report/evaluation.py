"""Results of ``stepvar eval``: every metric of every run, or what is missing for it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infinity.errors import UserError
from stepvar_patch.experiments.estimate import Estimate
from stepvar_patch.experiments.report.files import fit
from stepvar_patch.experiments.report.model import (
    METRICS,
    Arm,
    Profile,
    Quality,
    Source,
    Speed,
    Table,
    series_of,
)
from stepvar_patch.experiments.table.report import show
from stepvar_patch.experiments.table.schema import COLUMNS

_DENSE = "dense"
_VAGUE = (_DENSE, "pruned")
"""What ``stepvar eval`` calls the runs that it draws itself."""

_SPEEDS: Mapping[Speed, str] = {"flops": "flops", "loop": "loop_speedup", "time": "speedup"}
"""Axis → metric that tells how many times cheaper than dense a run is."""

_BITS = "bits_last"


@dataclass(frozen=True, kw_only=True)
class _File:
    command: str
    runs: dict[str, dict[str, Estimate]]
    versions: dict[str, str] = field(default_factory=dict)


def is_evaluation(value: dict[str, Any]) -> bool:
    """Whether a JSON object is an evaluation."""
    return isinstance(value.get("runs"), dict) and "command" in value


def read_evaluation(path: Path, value: dict[str, Any]) -> Source:
    """What an evaluation has to show.

    Raises:
        UserError: a field is missing or of the wrong kind, or there are no runs.
    """
    file = fit(_File, value, path)
    if not file.runs:
        raise UserError(f"{path}: runs is empty; an evaluation has at least one")
    bits = {name: found[_BITS].per_scale for name, found in file.runs.items() if _BITS in found}
    bits = {name: shares for name, shares in bits.items() if shares}
    title = path.parent.resolve().name if path.stem == "eval" else path.stem
    return Source(
        title=f"Evaluation: {title}",
        path=str(path),
        summary=f"{len(file.runs)} runs.",
        commands=(file.command,),
        environment=file.versions,
        arms=[arm(name, found, title) for name, found in file.runs.items()],
        profiles=[Profile(title="share of bits equal to dense", lines=bits)] if bits else [],
        tables=measured_tables(file.runs),
    )


def arm(name: str, found: Mapping[str, Estimate], title: str) -> Arm:
    """A run as a point of the charts; the dense one is at 1 by definition."""
    speeds: dict[Speed, float] = {}
    for speed, metric in _SPEEDS.items():
        value = found[metric].value if metric in found else None
        if value or name == _DENSE:
            speeds[speed] = value or 1.0
    quality = {
        metric: Quality(value=m.value, low=m.low, high=m.high)
        for metric, m in found.items()
        if metric in METRICS and m.value is not None
    }
    shown = f"{title}: {name}" if name in _VAGUE else name
    series, point = series_of(shown)
    return Arm(label=shown, series=series, point=point, speeds=speeds, quality=quality)


def measured_tables(runs: Mapping[str, Mapping[str, Estimate]]) -> list[Table]:
    """All values, a run per row, and why some are missing."""
    names = dict.fromkeys(name for found in runs.values() for name in found)
    shown = [n for n in names if any(n in f and f[n].value is not None for f in runs.values())]
    rows = [[run, *(_cell(n, found.get(n)) for n in shown)] for run, found in runs.items()]
    head = ["run", *map(title_of, shown)]
    reasons: dict[str, list[str]] = {}
    for name in names:
        if name not in shown:
            told = next(found[name].missing for found in runs.values() if name in found)
            reasons.setdefault(told, []).append(name)
    tables = [
        Table(
            title="± half the 95 % interval; of times and speed-ups, half the quartiles' distance",
            head=head,
            rows=rows,
        )
    ]
    if reasons:
        absent = [[", ".join(metrics), told] for told, metrics in reasons.items()]
        tables.append(Table(title="not computed", head=("metrics", "why"), rows=absent, prose=True))
    return tables


def title_of(metric: str) -> str:
    """What a column is called."""
    return COLUMNS[metric].title if metric in COLUMNS else metric


def _cell(name: str, estimate: Estimate | None) -> str:
    if estimate is None or estimate.value is None:
        return "–"
    return show(name, estimate) if name in COLUMNS else f"{estimate.value:.4g}"
