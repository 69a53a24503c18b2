"""An ablation: many pruned variants of the same pictures against their dense originals."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from infinity.io.files import make_folder, remove_temporary, write_atomic
from infinity.io.lock import RunLock
from infinity.io.ranks import Ranks
from stepvar_patch.experiments.ablate.draw import Bench
from stepvar_patch.experiments.ablate.rows import ROWS, Row, append_rows, finished_rows
from stepvar_patch.experiments.ablate.schema import AblateConfig, Cell, expand
from stepvar_patch.experiments.bench.environment import machine
from stepvar_patch.experiments.check import CheckedRun, check, loaded_as
from stepvar_patch.experiments.dry_run import dry_run
from stepvar_patch.experiments.generate import Progress
from stepvar_patch.experiments.maker import versions
from stepvar_patch.experiments.plan import ImageJob, jobs
from stepvar_patch.experiments.threads import using_threads


@dataclass(frozen=True, kw_only=True)
class AblationRows:
    """The rows of an ablation, by cell in the order of the file, and what this call did.

    Attributes:
        planned: FLOPs / dense FLOPs of every cell's plan; None where the policy decides as it
            draws.
        environment: machine, precision and weights of the first cell.
    """

    cells: dict[str, list[Row]]
    planned: dict[str, float | None]
    environment: dict[str, Any]
    made: int
    seconds: float


def run(
    config: AblateConfig, progress: Progress, load_pipeline: Callable[..., Any]
) -> AblationRows:
    """Draws every cell's pictures that have no row yet.

    All cells are checked before weights are read. Batch by batch (on the CPU image by image) the
    dense pictures are drawn first and then every cell's, so that the machine's moods meet all of
    them alike.

    Args:
        config: of the ablation.
        progress: told of every finished row.
        load_pipeline: reads the model.

    Returns:
        All rows, those found finished included.

    Raises:
        UserError: a mistake in any cell, a place that cannot be written, or a folder in use by
            another run.
    """
    start = time.perf_counter()
    cells = expand(config)
    checked = {cell.label: check(cell.config) for cell in cells}
    folder = Path(config.output)
    make_folder(folder)
    with RunLock(folder, Ranks()):
        rows, made = _draw_rows(config, cells, checked, progress, load_pipeline)
    planned = {cell.label: _planned(cell, checked[cell.label]) for cell in cells}
    first = checked[cells[0].label]
    return AblationRows(
        cells=rows,
        planned=planned,
        environment={
            **machine(torch.device(first.device)),
            "dtype": first.dtype,
            "weights": first.digest,
        },
        made=made,
        seconds=time.perf_counter() - start,
    )


def _planned(cell: Cell, checked: CheckedRun) -> float | None:
    speedup = dry_run(cell.config, checked.model, checked.device_type).speedup
    return None if speedup is None else 1 / speedup


def _draw_rows(
    config: AblateConfig,
    cells: Sequence[Cell],
    checked: Mapping[str, CheckedRun],
    progress: Progress,
    load_pipeline: Callable[..., Any],
) -> tuple[dict[str, list[Row]], int]:
    """All rows by cell, and how many were drawn just now."""
    folder = Path(config.output)
    remove_temporary(folder)
    settings = json.dumps(asdict(config), ensure_ascii=False, indent=1).encode()
    write_atomic(folder / "config.json", lambda file: file.write(settings))
    finished = finished_rows(folder / ROWS)
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        groups.setdefault(loaded_as(cell.config, checked[cell.label]), []).append(cell)
    rows: dict[str, list[Row]] = {cell.label: [] for cell in cells}
    tasks = {cell.label: _tasks(cell, checked[cell.label], config, finished) for cell in cells}
    total = sum(map(len, tasks.values()))
    known = sum(row is not None for found in tasks.values() for _, _, row in found)
    progress.start(total, known)
    for (model, tokenizer, encoder, device, dtype), members in groups.items():
        names = [cell.label for cell in members]
        if all(row is not None for name in names for _, _, row in tasks[name]):
            continue
        with progress.loading():
            pipeline = load_pipeline(
                model, tokenizer=tokenizer, text_encoder=encoder, device=device, dtype=dtype
            )
        bench = Bench(pipeline, max(cell.config.batch_size for cell in members))
        for batch in _batches(config, bench.batch_size):
            for cell in members:
                found = tasks[cell.label]
                missing = [index for index in batch if index < len(found) and not found[index][2]]
                if not missing:
                    continue
                count = batch.start < config.flop_images
                with using_threads(cell.config.threads if device == "cpu" else None):
                    made = bench.draw(cell, [found[index][0] for index in missing], count=count)
                fresh = []
                for index, values in zip(missing, made, strict=True):
                    job, key, _ = found[index]
                    row = Row(key=key, cell=cell.label, id=job.row.id, seed=job.seed, **values)
                    found[index] = job, key, row
                    fresh.append(row)
                append_rows(folder / ROWS, fresh)
                progress.advance(len(fresh))
            bench.forget()
    for name, found in tasks.items():
        rows[name] = [row for _, _, row in found if row is not None]
    return rows, total - known


def _batches(config: AblateConfig, size: int) -> Iterator[range]:
    """Images to draw together: those whose operations are counted one by one, then the others."""
    counted = min(config.flop_images, config.images)
    yield from (range(index, index + 1) for index in range(counted))
    for start in range(counted, config.images, size):
        yield range(start, min(start + size, config.images))


def _tasks(
    cell: Cell, checked: CheckedRun, ablation: AblateConfig, finished: Mapping[str, Row]
) -> list[tuple[ImageJob, str, Row | None]]:
    """The first images of a cell, each with its key and its row, if that is finished."""
    tasks = []
    for index, job in enumerate(islice(jobs(cell.config), ablation.images)):
        key = _row_key(cell, checked, job, count=index < ablation.flop_images)
        tasks.append((job, key, finished.get(key)))
    return tasks


def _row_key(cell: Cell, checked: CheckedRun, job: ImageJob, *, count: bool) -> str:
    """Hash of all that decides a row but the machine's speed."""
    settings = asdict(cell.config)
    for name in ("output", "prompts", "preview", "contact_sheet", "batch_size", "device"):
        del settings[name]
    for name in (
        "images_per_prompt",
        "seed",
        "negative_prompt",
        "memory",
        "text_cache",
        "quantize",
        "shape",
    ):
        del settings[name]
    for name in ("resolution", "threads"):  # a row keeps the key that it had before there was one
        if settings[name] is None:
            del settings[name]
    what = {
        **settings,
        "label": cell.label,
        "counted": count,
        "model": checked.digest or cell.config.model,
        "device": checked.device_type,
        "dtype": checked.dtype,
        "job": (job.row.prompt, job.negative_prompt, job.seed),
        "versions": versions(),
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:24]
