"""One generation run: prompt rows in, finished images and their manifest out; always resumable."""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from infinity.errors import UserError
from infinity.io.images import Provenance, contact_sheet, strip, write_png
from infinity.io.manifest import ImageRow, RunFolder, file_sha256
from infinity.io.ranks import Ranks, ranks_from_environment
from infinity.policy import PruningPolicy
from stepvar_patch.experiments.plan import ImageJob, check, jobs
from stepvar_patch.experiments.pruning import draw_pruned, recorded, resolve_pruning
from stepvar_patch.experiments.schema import FREE_ON_RESUME, GenerateConfig, ImageSettings

CONTACT_SHEET = "contact_sheet.png"
CONTACT_SHEET_IMAGES = 64
"""The sheet shows at most this many images, the first in prompt order."""

LoadPipeline = Callable[..., Any]
"""``InfinityPipeline.from_pretrained``, or what a test puts in its place."""


class Progress(Protocol):
    """What a run tells while it works."""

    def start(self, total: int, finished: int) -> None: ...

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

    Returns:
        Counts of the whole run and the time taken.

    Raises:
        UserError: a mistake in the prompts, settings, weights or output folder, or a full disk.
    """
    start = time.perf_counter()
    ranks = ranks or ranks_from_environment()
    checked = check(config)
    resolved = {**asdict(config), "device": checked.device, "dtype": checked.dtype}
    with RunFolder(Path(config.output), resolved, _fixed_on_resume, ranks) as folder:
        resumed = _count_finished(folder, config)
        if checked.digest is not None:
            _check_weights(folder, config, checked.digest)
        if ranks.rank == 0:
            progress.start(checked.images, resumed)
        if resumed < checked.images:
            pipeline = load_pipeline(
                config.model,
                tokenizer=config.tokenizer,
                text_encoder=config.text_encoder,
                device=_own_device(checked.device, ranks),
                dtype=checked.dtype,
            )
            _check_weights(folder, config, pipeline.digest)
            policy = resolve_pruning(config, pipeline.config)
            maker = _Maker(config, folder, pipeline, checked.dtype, policy)
            _draw_all(maker, checked.images, progress if ranks.rank == 0 else None)
        last = folder.merge(job.file for job in jobs(config))
        if last and config.contact_sheet:
            _write_contact_sheet(folder, config)
    seconds = time.perf_counter() - start
    return RunSummary(
        output=config.output, images=checked.images - resumed, resumed=resumed, seconds=seconds
    )


def _draw_all(maker: "_Maker", images: int, progress: Progress | None) -> None:
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
    """The GPU of this process, when several processes run and none is named."""
    if ranks.alone or device != "cuda":
        return device
    import torch

    return f"cuda:{ranks.local % torch.cuda.device_count()}"


def versions() -> dict[str, str]:
    """Versions of what an image's bits depend on."""
    names = ("stepvar", "torch", "pillow")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def settings_of(config: ImageSettings, pipeline: Any) -> dict[str, Any]:
    """The image settings as keyword arguments of the pipeline, the model's defaults filled in;
    pruning is applied to the pipeline instead.
    """
    names = [field.name for field in fields(ImageSettings) if field.name != "pruning"]
    defaults = asdict(pipeline.config.sampling)
    values = {name: getattr(config, name) for name in names}
    return {name: defaults.get(name) if v is None else v for name, v in values.items()}


class _Previews:
    """The pictures of a call after each scale; the pipeline may split a call into batches."""

    def __init__(self, decode: Callable[[Any], list[Image.Image]]) -> None:
        self._decode = decode
        self._first = 0
        self._scale: int | None = None
        self.ms = 0.0
        self.images: list[list[Image.Image]] = []

    def add(self, end: Any) -> None:
        start = time.perf_counter()
        if self._scale is None or end.scale <= self._scale:
            self._first = len(self.images)
            self.images += [[] for _ in end.latent]
        self._scale = end.scale
        for offset, image in enumerate(self._decode(end.latent)):
            self.images[self._first + offset].append(image)
        self.ms += 1000 * (time.perf_counter() - start)


class _Maker:
    """Draws batches and puts them into the run folder."""

    def __init__(
        self,
        config: GenerateConfig,
        folder: RunFolder,
        pipeline: Any,
        dtype: str,
        policy: PruningPolicy | None,
    ) -> None:
        self.config, self.folder, self.pipeline = config, folder, pipeline
        self.settings, self.policy = settings_of(config, pipeline), policy
        device = pipeline.device.type
        self.batch_size = 1
        if device != "cpu":
            self.batch_size = pipeline.max_batch_size = config.batch_size
        pruning = recorded(policy)
        self.recorded = {**self.settings, "pruning": pruning, "device": device, "dtype": dtype}
        self.model = {
            "name": pipeline.config.name,
            "digest": pipeline.digest,
            "path": config.model,
            **({"tokenizer": config.tokenizer} if config.tokenizer else {}),
            **({"text_encoder": config.text_encoder} if config.text_encoder else {}),
        }
        self.versions = versions()

    def make(self, batch: Sequence[ImageJob]) -> int:
        """Draws, writes and records the unfinished images of a batch, and says how many.

        On a GPU the batch is drawn whole even when only some of it is unfinished: kernels round by
        batch, and so a resumed run gives the very images of an uninterrupted one.
        """
        unfinished = {job.file for job in batch if job.file not in self.folder.finished}
        if not unfinished:
            return 0
        self.folder.check_present()
        previews = _Previews(self.pipeline.decode)
        try:
            out = draw_pruned(
                self.pipeline,
                self.policy,
                [job.row.prompt for job in batch],
                negative_prompt=_negative_prompts(batch),
                seed=[job.seed for job in batch],
                callback_on_scale_end=previews.add if self.config.preview else None,
                **self.settings,
            )
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError":
                raise
            raise UserError(
                f"batch_size = {len(batch)} does not fit into the GPU's memory; lower it"
            ) from error
        stages = dict(out.timings)
        if self.config.preview:
            stages["scales"] -= previews.ms
            stages["preview"] = previews.ms
        ms = {stage: round(total / len(batch), 3) for stage, total in stages.items()}
        try:
            for index, job in enumerate(batch):
                if job.file not in unfinished:
                    continue
                if self.config.preview:
                    path = self.folder.path / f"{job.name}.preview.png"
                    write_png(path, strip(previews.images[index]))
                self._write(job, out.images[index], ms)
        except UserError as error:
            count = len(self.folder.finished)
            raise UserError(f"{error}; {count} finished images and their manifest are valid") from (
                error.__cause__ or error
            )
        return len(unfinished)

    def _write(self, job: ImageJob, image: Image.Image, ms: dict[str, float]) -> None:
        start = time.perf_counter()
        provenance = Provenance(
            id=job.row.id,
            prompt=job.row.prompt,
            negative_prompt=job.negative_prompt,
            seed=job.seed,
            settings=self.recorded,
            model=self.model,
            versions=self.versions,
            extra=job.row.extra,
        )
        path = self.folder.path / job.file
        write_png(path, image, provenance)
        self.folder.append(
            ImageRow(
                id=job.row.id,
                seed=job.seed,
                prompt=job.row.prompt,
                negative_prompt=job.negative_prompt,
                file=job.file,
                sha256=file_sha256(path),
                weights=self.pipeline.digest,
                ms={**ms, "write": round(1000 * (time.perf_counter() - start), 3)},
                extra=job.row.extra,
            )
        )


def _negative_prompts(batch: Sequence[ImageJob]) -> list[str] | None:
    """One per prompt, or ``None`` when no image has one; an empty text means none."""
    texts = [job.negative_prompt or "" for job in batch]
    return texts if any(texts) else None


def _fixed_on_resume(config: Mapping[str, Any]) -> dict[str, Any]:
    """What must stay as it was: on the CPU not the batch size, on GPUs not the GPU's number."""
    fixed = {name: value for name, value in config.items() if name not in FREE_ON_RESUME}
    fixed["device"] = str(config.get("device")).partition(":")[0]
    if fixed["device"] == "cpu":
        fixed.pop("batch_size", None)
    return fixed


def _check_weights(folder: RunFolder, config: GenerateConfig, digest: str) -> None:
    for weights, file in folder.finished.weights.items():
        if weights != digest:
            raise UserError(
                f"model: {config.model} holds other weights than those that made "
                f"{folder.path / file}; choose another output folder"
            )


def _count_finished(folder: RunFolder, config: GenerateConfig) -> int:
    """How many jobs have a finished image, which must be of the same prompt."""
    count = 0
    for job in jobs(config):
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
    write_png(folder.path / CONTACT_SHEET, sheet)
