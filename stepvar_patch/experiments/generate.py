"""One generation run: prompt rows in, finished images and their manifest out; always resumable."""

import logging
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from infinity.errors import UserError
from infinity.io.images import Provenance, contact_sheet, strip, write_png
from infinity.io.manifest import ImageRow, RunFolder, file_sha256, image_name
from infinity.io.prompts import PromptRow, derived_seed, read_prompts
from stepvar_patch.experiments.schema import FREE_ON_RESUME, GenerateConfig, ImageSettings

CONTACT_SHEET = "contact_sheet.png"
CONTACT_SHEET_IMAGES = 64
"""The sheet shows at most this many images, the first in prompt order."""

_log = logging.getLogger(__name__)

LoadPipeline = Callable[..., Any]
"""``InfinityPipeline.from_pretrained``, or what a test puts in its place."""


class Progress(Protocol):
    """What a run tells while it works."""

    def start(self, total: int, finished: int) -> None: ...

    def advance(self, images: int) -> None: ...


@dataclass(frozen=True, kw_only=True)
class ImageJob:
    """One image to draw."""

    row: PromptRow
    seed: int
    negative_prompt: str | None

    @property
    def name(self) -> str:
        return image_name(self.row.id, self.seed)

    @property
    def file(self) -> str:
        return f"{self.name}.png"


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What a run did: images made now, images found finished, and where they are."""

    output: str
    images: int
    resumed: int
    seconds: float


def jobs(config: GenerateConfig) -> Iterator[ImageJob]:
    """The images of a run in prompt order.

    Args:
        config: of the run.

    Yields:
        ``images_per_prompt`` jobs for each row; image ``k`` of a row has the row's seed plus ``k``.

    Raises:
        UserError: a mistake in the prompt file.
    """
    for row in read_prompts(Path(config.prompts)):
        first = derived_seed(config.seed, row.id) if row.seed is None else row.seed
        negative = config.negative_prompt if row.negative_prompt is None else row.negative_prompt
        for k in range(config.images_per_prompt):
            yield ImageJob(row=row, seed=first + k, negative_prompt=negative or None)


@dataclass(frozen=True, kw_only=True)
class CheckedRun:
    """What is known of a run before weights are read.

    Attributes:
        images: of the run, finished ones included.
        digest: of the model directory; ``None`` for official files, which are hashed when loaded.
        device: where it runs.
        dtype: in which precision.
    """

    images: int
    digest: str | None
    device: str
    dtype: str


def check(config: GenerateConfig) -> CheckedRun:
    """Checks all of a run that can be checked without reading weights.

    Args:
        config: of the run.

    Returns:
        What was found.

    Raises:
        UserError: a mistake in the prompt file, a setting that the model cannot take, no model, or
            a GPU that is not there.
    """
    from infinity.checkpoint import digest, load_model_config
    from infinity.sampling.settings import resolve_settings
    from infinity.schedule import scale_schedule

    device, dtype = resolve_device(config.device, config.dtype)
    images = sum(1 for _ in jobs(config))
    path = Path(config.model)
    if config.tokenizer is not None:
        for name, file in (("model", path), ("tokenizer", Path(config.tokenizer))):
            if not file.exists():
                raise UserError(f"{name}: {file} does not exist")
        return CheckedRun(images=images, digest=None, device=device, dtype=dtype)
    if not path.is_dir():
        raise UserError(
            f"model: {path} is not a folder; give a model directory, or an official transformer "
            "with its tokenizer=FILE"
        )
    model = load_model_config(path)
    resolve_settings(
        model.sampling,
        len(scale_schedule(config.aspect_ratio or 1.0, model.resolution)),
        model.transformer.depth,
        guidance_scale=config.guidance_scale,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        guidance_layers=config.guidance_layers,
    )
    return CheckedRun(images=images, digest=digest(path), device=device, dtype=dtype)


def run(config: GenerateConfig, progress: Progress, load_pipeline: LoadPipeline) -> RunSummary:
    """Draws every image of a run that is not finished yet.

    The prompt file, the run folder and the model's manifest are checked before weights are read. An
    image is written before its manifest row, so killing the process loses at most one batch.

    Args:
        config: of the run.
        progress: told of every finished batch.
        load_pipeline: reads the model directory.

    Returns:
        Counts and the time taken.

    Raises:
        UserError: a mistake in the prompts, settings, weights or output folder, or a full disk.
    """
    start = time.perf_counter()
    checked = check(config)
    resolved = {**asdict(config), "device": checked.device, "dtype": checked.dtype}
    with RunFolder(Path(config.output), resolved, _fixed_on_resume) as folder:
        resumed = _count_finished(folder, config)
        if checked.digest is not None:
            _check_weights(folder, config, checked.digest)
        progress.start(checked.images, resumed)
        if resumed < checked.images:
            pipeline = load_pipeline(
                config.model,
                tokenizer=config.tokenizer,
                text_encoder=config.text_encoder,
                device=checked.device,
                dtype=checked.dtype,
            )
            _check_weights(folder, config, pipeline.digest)
            maker = _Maker(config, folder, pipeline, checked.dtype)
            every = jobs(config)
            while batch := list(islice(every, maker.batch_size)):
                if made := maker.make(batch):
                    progress.advance(made)
        if config.contact_sheet:
            _write_contact_sheet(folder, config)
    seconds = time.perf_counter() - start
    return RunSummary(
        output=config.output, images=checked.images - resumed, resumed=resumed, seconds=seconds
    )


def resolve_device(device: str | None, dtype: str | None) -> tuple[str, str]:
    """The device and dtype that a run uses when the config leaves them open.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``None``.
        dtype: ``float32``, ``bfloat16`` or ``None``.

    Returns:
        Device and dtype.

    Raises:
        UserError: a GPU is asked for that is not there.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device is None:
        device = "cuda" if gpus else "cpu"
    elif device != "cpu" and int(device.partition(":")[2] or 0) >= gpus:
        raise UserError(f"device = {device!r} is not available; this machine shows {gpus} GPUs")
    return device, dtype or ("float32" if device == "cpu" else "bfloat16")


def versions() -> dict[str, str]:
    """Versions of what an image's bits depend on."""
    names = ("stepvar", "torch", "pillow")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def settings_of(config: ImageSettings, pipeline: Any) -> dict[str, Any]:
    """The image settings as keyword arguments of the pipeline, the model's defaults filled in."""
    names = [field.name for field in fields(ImageSettings)]
    defaults = asdict(pipeline.config.sampling)
    values = {name: getattr(config, name) for name in names}
    return {name: defaults.get(name) if v is None else v for name, v in values.items()}


class _Previews:
    """The pictures of a call after each scale; the pipeline may split a call into batches."""

    def __init__(self, decode: Callable[[Any], list[Image.Image]]) -> None:
        self._decode = decode
        self._first = 0
        self.ms = 0.0
        self.images: list[list[Image.Image]] = []

    def add(self, end: Any) -> None:
        start = time.perf_counter()
        if end.scale == 0:
            self._first = len(self.images)
            self.images += [[] for _ in end.latent]
        for offset, image in enumerate(self._decode(end.latent)):
            self.images[self._first + offset].append(image)
        self.ms += 1000 * (time.perf_counter() - start)


class _Maker:
    """Draws batches and puts them into the run folder."""

    def __init__(
        self, config: GenerateConfig, folder: RunFolder, pipeline: Any, dtype: str
    ) -> None:
        self.config, self.folder, self.pipeline = config, folder, pipeline
        self.settings = settings_of(config, pipeline)
        device = pipeline.device.type
        self.batch_size = 1
        if device != "cpu":
            self.batch_size = pipeline.max_batch_size = config.batch_size
        self.recorded = {**self.settings, "device": device, "dtype": dtype}
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
        unfinished = {job.file for job in batch} - self.folder.finished.keys()
        if not unfinished:
            return 0
        previews = _Previews(self.pipeline.decode)
        try:
            out = self.pipeline(
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
    for row in folder.finished.values():
        if row.weights != digest:
            raise UserError(
                f"model: {config.model} holds other weights than those that made "
                f"{folder.path / row.file}; choose another output folder"
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
