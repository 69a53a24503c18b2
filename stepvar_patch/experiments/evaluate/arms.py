"""Several runs of the same prompts and seeds, drawn by turns: what a table compares."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

from infinity.errors import named
from infinity.io.manifest import RunFolder
from infinity.io.rows import ImageRow
from stepvar_patch.experiments.check import CheckedRun, check, loaded_as
from stepvar_patch.experiments.generate import Progress, check_weights, count_finished
from stepvar_patch.experiments.maker import Maker
from stepvar_patch.experiments.plan import ImageJob, jobs
from stepvar_patch.experiments.pruning import resolve_pruning
from stepvar_patch.experiments.schema import GenerateConfig, fixed_on_resume
from stepvar_patch.experiments.scorers.timing import count_flops, lacks_flops
from stepvar_patch.experiments.threads import default_threads, using_threads

logger = logging.getLogger(__name__)

DENSE = "dense"
"""Label of the arm that all others are compared with."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One run to draw; its folder is the config's ``output``."""

    label: str
    config: GenerateConfig

    @property
    def folder(self) -> Path:
        return Path(self.config.output)


@dataclass(frozen=True, kw_only=True)
class DrawnArm:
    """An arm's finished pictures.

    Attributes:
        label: of the arm.
        folder: of its run.
        rows: one per picture, in prompt order.
        made: how many of them this call drew.
    """

    label: str
    folder: Path
    rows: tuple[ImageRow, ...]
    made: int


def plain_config(config: GenerateConfig, **changes: Any) -> GenerateConfig:
    """The part of a config that ``stepvar generate`` knows, with some values replaced."""
    values = {field.name: getattr(config, field.name) for field in fields(GenerateConfig)}
    return GenerateConfig(**{**values, **changes})


def draw_arms(
    arms: Sequence[Arm],
    images: int | None,
    progress: Progress,
    load_pipeline: Callable[..., Any],
) -> list[DrawnArm]:
    """Draws what the arms' folders do not hold yet.

    The arms take turns batch by batch, so that the machine's moods meet all of them alike. On a GPU
    every arm first draws a batch that is forgotten.

    Args:
        arms: with folders of their own; those with the same model share it.
        images: how many to draw, the first of the prompt file; None is all.
        progress: told of every finished batch.
        load_pipeline: reads the model.

    Raises:
        UserError: a mistake in any arm, or a folder of another run.
    """
    checked = {}
    for arm in arms:
        with named(f"arm '{arm.label}'"):
            checked[arm.label] = check(arm.config)
    todo = {arm.label: list(islice(jobs(arm.config), images)) for arm in arms}
    with ExitStack() as stack:
        folders = {arm.label: stack.enter_context(_open(arm, checked[arm.label])) for arm in arms}
        finished = {label: count_finished(folders[label], todo[label]) for label in folders}
        progress.start(sum(map(len, todo.values())), sum(finished.values()))
        groups: dict[tuple[Any, ...], list[Arm]] = {}
        for arm in arms:
            known = checked[arm.label]
            kind = known.device_type
            unfinished = finished[arm.label] < len(todo[arm.label])
            if unfinished or lacks_flops(arm.config, known.model, kind, arm.folder):
                groups.setdefault(loaded_as(arm.config, known), []).append(arm)
        for (model, tokenizer, encoder, device, dtype), members in groups.items():
            with progress.loading():
                pipeline = load_pipeline(
                    model, tokenizer=tokenizer, text_encoder=encoder, device=device, dtype=dtype
                )
            makers = {
                arm.label: _maker(arm, folders[arm.label], pipeline, dtype) for arm in members
            }
            _draw_by_turns(makers, todo, progress, warm=device.startswith("cuda"))
            for arm in members:
                if (policy := makers[arm.label].policy) is not None:
                    count_flops(pipeline, todo[arm.label], arm.config, policy, arm.folder)
        for arm in arms:
            folders[arm.label].merge(job.file for job in todo[arm.label])
        return [
            DrawnArm(
                label=arm.label,
                folder=arm.folder,
                rows=tuple(_rows(folders[arm.label], todo[arm.label])),
                made=len(todo[arm.label]) - finished[arm.label],
            )
            for arm in arms
        ]


def _draw_by_turns(
    makers: dict[str, Maker], todo: dict[str, list[ImageJob]], progress: Progress, *, warm: bool
) -> None:
    turn = max(maker.batch_size for maker in makers.values())
    for label, maker in makers.items():
        first = todo[label][: maker.batch_size]
        if warm and any(maker.unfinished(batch) for batch in _batches(todo[label], 1)):
            maker.warm_up(first)
    for start in range(0, max(len(todo[label]) for label in makers), turn):
        for label, maker in makers.items():
            for batch in _batches(todo[label][start : start + turn], maker.batch_size):
                with using_threads(maker.folder.config["threads"]):
                    made = maker.make(batch)
                if made:
                    progress.advance(made)


def _batches(jobs: Sequence[ImageJob], size: int) -> Iterator[Sequence[ImageJob]]:
    for start in range(0, len(jobs), size):
        yield jobs[start : start + size]


def _open(arm: Arm, checked: CheckedRun) -> RunFolder:
    resolved = {**asdict(arm.config), "device": checked.device, "dtype": checked.dtype}
    defaults = default_threads(checked.device)
    folder = RunFolder(arm.folder, resolved, fixed_on_resume, defaults=defaults)
    if checked.digest is not None:
        check_weights(folder, arm.config, checked.digest)
    return folder


def _maker(arm: Arm, folder: RunFolder, pipeline: Any, dtype: str) -> Maker:
    with named(f"arm '{arm.label}'"):
        check_weights(folder, arm.config, pipeline.digest)
        policy = resolve_pruning(arm.config, pipeline.config)
        with using_threads(folder.config["threads"]):
            return Maker(arm.config, folder, pipeline, dtype, policy, codes=True)


def _rows(folder: RunFolder, todo: Sequence[ImageJob]) -> Iterator[ImageRow]:
    for job in todo:
        row = folder.finished.get(job.file)
        if row is not None:
            yield row
