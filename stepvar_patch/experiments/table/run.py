"""``stepvar table``: arms drawn by turns, scored, and put beside what is published."""

import logging
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from infinity.errors import UserError
from infinity.io.files import make_folder
from stepvar_patch.experiments.bench.environment import machine
from stepvar_patch.experiments.benchmarks.columns import benchmark_estimates
from stepvar_patch.experiments.check import check
from stepvar_patch.experiments.estimate import Estimate, compact
from stepvar_patch.experiments.evaluate.arms import Arm, draw_arms, plain_config
from stepvar_patch.experiments.evaluate.run import real_rows
from stepvar_patch.experiments.evaluate.scoring import Scoring, evaluate
from stepvar_patch.experiments.generate import Progress
from stepvar_patch.experiments.plan import resolve_device
from stepvar_patch.experiments.scorers.embedded import METRICS, reference_note
from stepvar_patch.experiments.scorers.timing import flop_estimate
from stepvar_patch.experiments.table.schema import TableConfig, table_cells

logger = logging.getLogger(__name__)

_INTERVALS = (
    "± half the 95 % interval, by bootstrap over prompts; of times and speed-ups, half the "
    "distance of the quartiles."
)
_NEEDS = {
    "geneval": ("detector", "clip"),
    "fid": ("inception", "real_images"),
    "kid": ("inception", "real_images"),
    "inception_score": ("inception",),
    "clip_score": ("clip",),
    "clip_fid": ("clip", "real_images"),
    "hps": ("hps", "clip"),
    "image_reward": ("image_reward", "bert"),
    "lpips": ("lpips_backbone", "lpips_heads"),
}
"""Column → `MetricFiles` that it is computed with."""


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


@dataclass(frozen=True, kw_only=True)
class TableResult:
    """A table with what it was made of.

    Attributes:
        rows: the arms, then what real pictures get.
        notes: on how to read it.
        environment: machine, precision, batch size and weights; empty where nothing was drawn.
    """

    rows: list[TableRow]
    notes: list[str]
    environment: dict[str, Any]


def run(
    table: TableConfig, progress: Progress, load_pipeline: Callable[..., Any]
) -> Iterator[TableResult]:
    """A table, drawing and scoring what its folder does not hold yet.

    Args:
        table: the config.
        progress: told of every finished batch.
        load_pipeline: reads the model.

    Yields:
        The table so far, after every arm that was scored; the last one is complete.

    Raises:
        UserError: a mistake in any arm.
    """
    cells, columns = table_cells(table), table.chosen.columns
    first = cells[0].config
    if not Path(first.model).exists():
        lacking = {name: Estimate.absent(_lacking(table, name)) for name in columns}
        rows = [TableRow(label=cell.label, images=0, cells=dict(lacking)) for cell in cells]
        yield TableResult(rows=rows, notes=[], environment={})
        return
    device, dtype = resolve_device(table.device, table.dtype)
    make_folder(table.folder)
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
    made = {
        **machine(torch.device(device)),
        "dtype": dtype,
        "batch_size": 1 if device == "cpu" else first.batch_size,
        "weights": drawn[0].rows[0].weights if drawn[0].rows else None,
    }
    prompts = len({row.id for row in drawn[0].rows})
    notes = [_INTERVALS, f"{len(drawn[0].rows)} pictures per arm, of {prompts} prompts."]
    rows = []
    for arm, pictures in zip(arms, drawn, strict=True):
        start = time.perf_counter()
        found = evaluate(pictures, None if pictures is drawn[0] else drawn[0], scoring)
        if pictures is drawn[0]:
            found |= {name: _same(found) for name in ("speedup", "loop_speedup", "flops")}
        else:
            shapes = check(arm.config).model
            found["flops"] = flop_estimate(arm.config, shapes, device.partition(":")[0], arm.folder)
        if device != "cpu" and arm.config.batch_size != arms[0].config.batch_size:
            found |= dict.fromkeys(("ms", "speedup", "loop_speedup"), _other_batch(arm))
        found |= extra[arm.label]
        cells_of = {name: found[name] for name in columns}
        rows.append(TableRow(label=arm.label, images=len(pictures.rows), cells=cells_of))
        scored = f"{len(rows)} of {len(arms)} arms are scored"
        logger.info("%s, '%s' in %.1f s", scored, arm.label, time.perf_counter() - start)
        yield TableResult(
            rows=[*rows], notes=[*notes, f"Not complete: {scored}."], environment=made
        )
    if set(columns) & set(METRICS) and not table.files.missing("drawings"):
        notes.append(reference_note(table.files, device))
        for label, found in real_rows(scoring).items():
            kept = {name: found[name] for name in columns if name in found}
            count = max((e.n for e in kept.values()), default=0)
            rows.append(TableRow(label=f"{label}, n = {count}", images=count, cells=kept))
    yield TableResult(rows=rows, notes=notes, environment=made)


def slug(label: str) -> str:
    """A folder's name for an arm."""
    return re.sub(r"[^a-z0-9.=-]+", "_", label.lower()).strip("_.") or "arm"


def _same(found: dict[str, Estimate]) -> Estimate:
    return Estimate(value=1.0, n=found["ms"].n)


def _lacking(table: TableConfig, column: str) -> str:
    """All files that a column of a model that is not there needs and does not find."""
    config = table_cells(table)[0].config
    benchmarks = {"geneval": table.benchmarks.geneval, "dpg": table.benchmarks.dpg}
    parts = [f"model ({config.model})"]
    if column in benchmarks:
        if not Path(benchmarks[column]).exists():
            parts.append(f"benchmarks.{column} ({benchmarks[column]})")
    elif not Path(config.prompts).exists():
        parts.append(f"prompts ({config.prompts})")
    if files := table.files.missing(*_NEEDS.get(column, ())):
        parts.append(files)
    return ", ".join(parts)


def _other_batch(arm: Arm) -> Estimate:
    reason = f"a time that compares (drawn {arm.config.batch_size} at once, dense more)"
    return Estimate.absent(reason)


def as_json(rows: list[TableRow]) -> list[dict[str, Any]]:
    """The rows as JSON values; what an estimate does not have is left out."""
    return [
        {
            "label": row.label,
            "images": row.images,
            "cells": {name: compact(estimate) for name, estimate in row.cells.items()},
        }
        for row in rows
    ]
