"""One generation run: prompt rows in, finished images and their manifest out; always resumable."""

import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from infinity.errors import UserError
from infinity.io.images import contact_sheet, write_png
from infinity.io.manifest import RunFolder
from infinity.io.ranks import Ranks, ranks_from_environment
from stepvar_patch.experiments.check import CheckedRun, check
from stepvar_patch.experiments.maker import Maker
from stepvar_patch.experiments.plan import ImageJob, jobs
from stepvar_patch.experiments.pruning import resolve_pruning
from stepvar_patch.experiments.schema import GenerateConfig, fixed_on_resume
from stepvar_patch.experiments.sparing import TEXT_CACHE, choose_memory, load_for_run
from stepvar_patch.experiments.threads import default_threads, using_threads

CONTACT_SHEET = "contact_sheet.png"
CONTACT_SHEET_IMAGES = 64
"""The sheet shows at most this many images, the first in prompt order."""

LoadPipeline = Callable[..., Any]
"""``InfinityPipeline.from_pretrained``, or what a test puts in its place."""


class Progress(Protocol):
    """What a run tells while it works."""

    def start(self, total: int, finished: int) -> None: ...

    def loading(self) -> AbstractContextManager[None]: ...

    def advance(self, images: int) -> None: ...


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What a run did: images made now, images found finished, and where they are."""

    output: str
    images: int
    resumed: int
    seconds: float


def run(
    config: GenerateConfig,
    progress: Progress,
    load_pipeline: LoadPipeline,
    ranks: Ranks | None = None,
    checked: CheckedRun | None = None,
) -> RunSummary:
    """Draws every image of a run that is not finished yet, alone or as one of several processes.

    The prompt file, the run folder and the model's manifest are checked before weights are read. An
    image is written before its manifest row, so killing the process loses at most one batch.

    Processes exchange no messages: each takes the next batch that nobody holds (`Claims`), and
    stays until all are done, so that the batches of one that dies are drawn by the others.

    Args:
        config: of the run.
        progress: told of every finished batch, by rank 0 of what all processes made.
        load_pipeline: reads the model directory.
        ranks: this process among those of the run; default: what the launcher's environment says.
        checked: what `check` found; default: it is called.

    Returns:
        Counts of the whole run and the time taken.

    Raises:
        UserError: a mistake in the prompts, settings, weights or output folder, or a full disk.
    """
    start = time.perf_counter()
    ranks = ranks or ranks_from_environment()
    checked = checked or check(config, generating=True)
    memory = choose_memory(config, checked)
    resolved = {
        **asdict(config),
        "device": checked.device,
        "dtype": checked.dtype,
        "memory": memory,
    }
    defaults = default_threads(checked.device)
    with (
        RunFolder(Path(config.output), resolved, fixed_on_resume, ranks, defaults) as folder,
        using_threads(folder.config["threads"]),
    ):
        resumed = count_finished(folder, jobs(config))
        if checked.digest is not None:
            check_weights(folder, config, checked.digest)
        if ranks.rank == 0:
            progress.start(checked.images, resumed)
        if resumed < checked.images:
            device = _own_device(checked.device, ranks)
            with progress.loading():
                pipeline = load_for_run(
                    config, checked, folder, device, ranks, memory, load_pipeline
                )
            check_weights(folder, config, pipeline.digest)
            policy = resolve_pruning(config, pipeline.config)
            maker = Maker(config, folder, pipeline, checked.dtype, policy)
            _draw_all(maker, checked.images, progress if ranks.rank == 0 else None)
        last = folder.merge(job.file for job in jobs(config))
        if last:
            shutil.rmtree(folder.path / TEXT_CACHE, ignore_errors=True)
            if config.contact_sheet:
                _write_contact_sheet(folder, config)
    seconds = time.perf_counter() - start
    return RunSummary(
        output=config.output, images=checked.images - resumed, resumed=resumed, seconds=seconds
    )


def _draw_all(maker: Maker, images: int, progress: Progress | None) -> None:
    """Takes and draws batches until all of the run are done, whoever drew them."""
    claims = maker.folder.claims
    told = 0

    def tell() -> None:
        nonlocal told
        if progress is not None and (made := claims.made() - told):
            told += made
            progress.advance(made)

    batches = -(-images // maker.batch_size)
    while claims.wait(batches, tell):
        every = jobs(maker.config)
        for number in range(batches):
            batch = list(islice(every, maker.batch_size))
            if claims.take(number):
                claims.finish(number, maker.make(batch))
                tell()


def _own_device(device: str, ranks: Ranks) -> str:
    """The GPU of this process, made the current one, when several run and none is named."""
    if ranks.alone or device != "cuda":
        return device
    import torch

    index = ranks.local % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return f"cuda:{index}"


def check_weights(folder: RunFolder, config: GenerateConfig, digest: str) -> None:
    """Refuses to go on with a run that other weights began.

    Raises:
        UserError: a finished image is of other weights.
    """
    for weights, file in folder.finished.weights.items():
        if weights != digest:
            raise UserError(
                f"model: {config.model} holds other weights than those that made "
                f"{folder.path / file}; choose another output folder"
            )


def count_finished(folder: RunFolder, todo: Iterable[ImageJob]) -> int:
    """How many jobs have a finished image, which must be of the same prompt."""
    count = 0
    for job in todo:
        row = folder.finished.get(job.file)
        if row is None:
            continue
        if (row.prompt, row.negative_prompt) != (job.row.prompt, job.negative_prompt):
            raise UserError(
                f"{job.row.where}: id {job.row.id!r} has another prompt than its finished image in "
                f"{folder.path}; choose another output folder or another id"
            )
        count += 1
    return count


def _write_contact_sheet(folder: RunFolder, config: GenerateConfig) -> None:
    first = list(islice(jobs(config), CONTACT_SHEET_IMAGES))
    sheet = contact_sheet({job.name: folder.path / job.file for job in first})
    write_png(folder.path / CONTACT_SHEET, sheet, note="thumbnails of the pictures beside it")
