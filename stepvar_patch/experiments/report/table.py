"""Results of ``stepvar table``: many arms with their metrics, beside what is published."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infinity.errors import UserError
from stepvar_patch.experiments.estimate import Estimate
from stepvar_patch.experiments.report.evaluation import arm, measured_tables, title_of
from stepvar_patch.experiments.report.files import fit
from stepvar_patch.experiments.report.model import Source, Table


@dataclass(frozen=True, kw_only=True)
class _Row:
    label: str
    images: int
    cells: dict[str, Estimate]


@dataclass(frozen=True, kw_only=True)
class _Published:
    method: str
    model: str
    hardware: str = ""
    values: dict[str, float]
    source: str
    checked: str = "no"


@dataclass(frozen=True, kw_only=True)
class _File:
    title: str
    command: str
    rows: tuple[_Row, ...]
    published: tuple[_Published, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str | int | bool | None] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def is_table(value: dict[str, Any]) -> bool:
    """Whether a JSON object was written by ``stepvar table``."""
    return isinstance(value.get("rows"), list) and {"title", "command"} <= value.keys()


def read_table(path: Path, value: dict[str, Any]) -> Source:
    """What a table has to show.

    Raises:
        UserError: a field is missing or of the wrong kind, two rows share a label, or there is
            none.
    """
    file = fit(_File, value, path)
    rows = {row.label: row.cells for row in file.rows}
    if not rows or len(rows) < len(file.rows):
        raise UserError(f"{path}: rows must be at least one, each with a label of its own")
    tables = measured_tables(rows)
    if file.published:
        tables.append(_published(file.published))
    return Source(
        title=f"Table: {file.title}",
        path=str(path),
        summary=" ".join((f"{len(rows)} rows, {file.rows[0].images} images per arm.", *file.notes)),
        commands=(file.command,),
        environment={**file.versions, **{k: str(v) for k, v in file.environment.items()}},
        arms=[arm(label, cells, file.title) for label, cells in rows.items()],
        tables=tables,
    )


def _published(rows: tuple[_Published, ...]) -> Table:
    names = dict.fromkeys(name for row in rows for name in row.values)
    return Table(
        title="published, by others' programs on others' machines",
        head=("method", "model", "hardware", *map(title_of, names), "source", "checked"),
        rows=[
            [
                *(row.method, row.model, row.hardware or "–"),
                *(f"{row.values[name]:g}" if name in row.values else "–" for name in names),
                row.source,
                row.checked,
            ]
            for row in rows
        ],
    )
