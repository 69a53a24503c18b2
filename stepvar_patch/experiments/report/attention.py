"""Results of ``stepvar bench attention``: every backend on the shapes of a model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepvar_patch.experiments.report.files import fit
from stepvar_patch.experiments.report.model import Source, Table

_FORMAT = "stepvar-bench-attention/"
_HEAD = ("backend", "ms", "min … max", "TFLOP/s", "relative error", "why not")


@dataclass(frozen=True, kw_only=True)
class _Backend:
    backend: str
    reason: str | None = None
    relative_error: float | None = None
    median_ms: float | None = None
    min_ms: float | None = None
    max_ms: float | None = None
    tflops_per_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class _Case:
    scale: int
    kind: str
    heads: int
    head_dim: int
    queries: tuple[int, ...]
    keys: tuple[int, ...]
    backends: tuple[_Backend, ...]


@dataclass(frozen=True, kw_only=True)
class _File:
    command: str
    environment: dict[str, Any]
    cases: tuple[_Case, ...]


def is_attention(value: dict[str, Any]) -> bool:
    """Whether a JSON object was written by ``stepvar bench attention``."""
    return str(value.get("format")).startswith(_FORMAT)


def read_attention(path: Path, value: dict[str, Any]) -> Source:
    """What a benchmark of the attention backends has to show.

    Raises:
        UserError: a field is missing or of the wrong kind.
    """
    file = fit(_File, value, path)
    return Source(
        title=f"Attention: {path.stem}",
        path=str(path),
        summary=f"{len(file.cases)} shapes; errors are against the reference.",
        commands=(file.command,),
        environment={name: str(value) for name, value in file.environment.items()},
        tables=[_table(case) for case in file.cases],
    )


def _table(case: _Case) -> Table:
    shape = f"{_counts(case.queries)} queries on {_counts(case.keys)} keys"
    return Table(
        title=f"scale {case.scale}, {case.kind}: {shape}, {case.heads} heads of {case.head_dim}",
        head=_HEAD,
        rows=[_cells(backend) for backend in case.backends],
    )


def _cells(found: _Backend) -> list[str]:
    spread = (found.min_ms, found.max_ms)
    return [
        found.backend,
        _told(found.median_ms),
        "–" if None in spread else " … ".join(map(_told, spread)),
        _told(found.tflops_per_s),
        _told(found.relative_error),
        found.reason or "",
    ]


def _counts(rows: tuple[int, ...]) -> str:
    """Equal counts once: ``4 × 1024``; others one by one."""
    return f"{len(rows)} × {rows[0]}" if rows and len(set(rows)) == 1 else "+".join(map(str, rows))


def _told(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
