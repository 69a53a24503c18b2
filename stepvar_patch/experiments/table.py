"""``stepvar table``: arms drawn by turns, scored, and put beside what is published."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infinity.errors import UserError
from infinity.io.files import write_error
from stepvar_patch.experiments.arms import Arm, draw_arms, plain_config
from stepvar_patch.experiments.benchmarks.columns import benchmark_estimates
from stepvar_patch.experiments.check import check
from stepvar_patch.experiments.estimate import Estimate
from stepvar_patch.experiments.eval_run import real_rows
from stepvar_patch.experiments.evaluate import Scoring, evaluate
from stepvar_patch.experiments.generate import Progress
from stepvar_patch.experiments.plan import resolve_device
from stepvar_patch.experiments.scorers.embedded import METRICS
from stepvar_patch.experiments.scorers.timing import flop_estimate
from stepvar_patch.experiments.table_schema import TableConfig, table_cells


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One line of a table: an arm, or what real pictures get.

    Attributes:
        label: of the arm.
        images: pictures that it has; 0 where it was not drawn.
        cells: column → estimate.
    """

    label: str
    images: int
    cells: dict[str, Estimate]


def run(
    table: TableConfig, progress: Progress, load_pipeline: Callable[..., Any]
) -> list[TableRow]:
    """The rows of a table, drawing and scoring what its folder does not hold yet.

    Args:
        table: the config.
        progress: told of every finished batch.
        load_pipeline: reads the model.

    Raises:
        UserError: a mistake in any arm.
    """
    cells, columns = table_cells(table), table.chosen.columns
    first = cells[0].config
    if not Path(first.model).exists():
        absent = Estimate.absent(f"model ({first.model})")
        return [
            TableRow(label=cell.label, images=0, cells=dict.fromkeys(columns, absent))
            for cell in cells
        ]
    device, _ = resolve_device(table.device, table.dtype)
    try:
        table.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(table.folder, error) from error
    scoring = Scoring(
        files=table.files, protocol=table.fid_protocol, device=device, cache=table.folder
    )
    arms = [
        Arm(label=c.label, config=plain_config(c.config, output=str(table.folder / slug(c.label))))
        for c in cells
    ]
    folders = [arm.folder for arm in arms]
    if len(set(folders)) < len(folders):
        raise UserError("arms: two labels give the same folder; use other names")
    drawn = draw_arms(arms, table.images, progress, load_pipeline)
    extra = benchmark_estimates(table, arms, scoring, progress, load_pipeline)
    rows = []
    for arm, pictures in zip(arms, drawn, strict=True):
        found = evaluate(pictures, None if pictures is drawn[0] else drawn[0], scoring)
        if pictures is drawn[0]:
            found |= {name: _same(found) for name in ("speedup", "loop_speedup", "flops")}
        else:
            shapes = check(arm.config).model
            found["flops"] = flop_estimate(arm.config, shapes, device.partition(":")[0], arm.folder)
        found |= extra[arm.label]
        cells_of = {name: found[name] for name in columns}
        rows.append(TableRow(label=arm.label, images=len(pictures.rows), cells=cells_of))
    if set(columns) & set(METRICS):
        for label, found in real_rows(scoring).items():
            kept = {name: found[name] for name in columns if name in found}
            count = max((e.n for e in kept.values()), default=0)
            rows.append(TableRow(label=f"{label}, n = {count}", images=count, cells=kept))
    return rows


def slug(label: str) -> str:
    """A folder's name for an arm."""
    return re.sub(r"[^a-z0-9.=-]+", "_", label.lower()).strip("_.") or "arm"


def _same(found: dict[str, Estimate]) -> Estimate:
    return Estimate(value=1.0, n=found["ms"].n)


def as_json(rows: list[TableRow]) -> list[dict[str, Any]]:
    """The rows as JSON values."""
    return json.loads(json.dumps([vars(r) for r in rows], default=vars))  # type: ignore[no-any-return]
