"""Draws batches of a run and puts the pictures into its folder."""

import os
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from PIL import Image

from infinity.checkpoint import source_digest
from infinity.errors import UserError
from infinity.io.files import file_sha256
from infinity.io.images import Provenance, strip, write_png
from infinity.io.manifest import RunFolder
from infinity.io.rows import ImageRow, preview_file
from infinity.policy import PruningPolicy
from stepvar_patch.experiments.codes import CodeRecorder, write_codes
from stepvar_patch.experiments.plan import ImageJob
from stepvar_patch.experiments.pruning import draw_pruned, recorded
from stepvar_patch.experiments.schema import GenerateConfig, ImageSettings

_WRITERS = min(16, os.cpu_count() or 1)
"""Threads that write a batch's pictures: compressing them is most of the work and runs outside the
interpreter's lock."""


def versions() -> dict[str, str]:
    """Versions of what an image's bits depend on."""
    names = ("stepvar", "torch", "pillow")
    return {"python": platform.python_version(), **{name: _version(name) for name in names}}


def _version(name: str) -> str:
    """Of an installed package; a checkout that is only on the path is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def settings_of(config: ImageSettings, pipeline: Any) -> dict[str, Any]:
    """The image settings as keyword arguments of the pipeline, the model's defaults filled in;
    pruning is applied to the pipeline instead.
    """
    names = [field.name for field in fields(ImageSettings) if field.name != "pruning"]
    defaults = asdict(pipeline.config.sampling)
    values = {name: getattr(config, name) for name in names}
    return {name: defaults.get(name) if v is None else v for name, v in values.items()}


class Previews:
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


class Maker:
    """Draws batches and puts them into the run folder.

    Args:
        config: of the run.
        folder: open.
        pipeline: loaded.
        dtype: recorded in the pictures.
        policy: None is dense.
        codes: also write every picture's codes, for comparisons bit by bit; the pictures themselves
            are then compressed less, to be written sooner.
    """

    def __init__(
        self,
        config: GenerateConfig,
        folder: RunFolder,
        pipeline: Any,
        dtype: str,
        policy: PruningPolicy | None,
        *,
        codes: bool = False,
    ) -> None:
        self.config, self.folder, self.pipeline, self.codes = config, folder, pipeline, codes
        self.settings, self.policy = settings_of(config, pipeline), policy
        device = pipeline.device.type
        self.batch_size = 1
        if device != "cpu":
            self.batch_size = config.batch_size
        pruning = recorded(policy)
        self.recorded = {**self.settings, "pruning": pruning, "device": device, "dtype": dtype}
        if device == "cpu":
            import torch

            self.recorded["threads"] = torch.get_num_threads()
        if config.quantize is not None:
            self.recorded["quantize"] = config.quantize
        source = source_digest(Path(config.model))
        self.model = {
            "name": pipeline.config.name,
            "digest": pipeline.digest,
            "path": config.model,
            **({"source": source} if source else {}),
            **({"tokenizer": config.tokenizer} if config.tokenizer else {}),
            **({"text_encoder": config.text_encoder} if config.text_encoder else {}),
        }
        self.versions = versions()

    def make(self, batch: Sequence[ImageJob]) -> int:
        """Draws, writes and records the unfinished images of a batch, and says how many.

        On a GPU the batch is drawn whole even when only some of it is unfinished: kernels round by
        batch, and so a resumed run gives the very images of an uninterrupted one.
        """
        unfinished = self.unfinished(batch)
        if not unfinished:
            return 0
        self.folder.check_present()
        previews, codes = Previews(self.pipeline.decode), CodeRecorder()
        watchers = [previews.add] if self.config.preview else []
        if self.codes:
            watchers.append(codes.add)
        out = self._draw(batch, watchers)
        stages = dict(out.timings)
        if self.config.preview:
            stages["scales"] -= previews.ms
            stages["preview"] = previews.ms
        ms = {stage: round(total / len(batch), 3) for stage, total in stages.items()}
        chosen = [index for index, job in enumerate(batch) if job.file in unfinished]
        if self.config.preview:
            for index in chosen:
                job = batch[index]
                note = f"the scales of {job.file}"
                write_png(self._preview(job), strip(previews.images[index]), note=note)
        signs = {index: codes.image(index) for index in chosen} if self.codes else {}

        def write(index: int) -> ImageRow:
            if self.codes:
                write_codes(self.folder.path, batch[index].name, signs[index])
            return self._write(batch[index], out.images[index], ms)

        try:
            with ThreadPoolExecutor(_WRITERS) as pool:
                for row in pool.map(write, chosen):
                    self.folder.append(row)
        except UserError as error:
            count = len(self.folder.finished)
            raise UserError(f"{error}; {count} finished images and their manifest are valid") from (
                error.__cause__ or error
            )
        return len(unfinished)

    def unfinished(self, batch: Sequence[ImageJob]) -> set[str]:
        """Files of the batch that the run does not have yet."""
        return {job.file for job in batch if job.file not in self.folder.finished}

    def warm_up(self, batch: Sequence[ImageJob]) -> None:
        """Draws a batch and forgets it, so that no recorded time holds the set-up of the decoder,
        of a first call, or of a second, at which an engine records its graphs.
        """
        watchers = [CodeRecorder().add] if self.codes else []
        self._draw(batch[:1], watchers)
        for _ in range(2):
            self._draw(batch, watchers, output_type="latent")

    def _draw(
        self,
        batch: Sequence[ImageJob],
        watchers: Sequence[Callable[[Any], None]],
        **settings: Any,
    ) -> Any:
        def watch(end: Any) -> None:
            for watcher in watchers:
                watcher(end)

        self.pipeline.max_batch_size = self.batch_size  # other makers may share the pipeline
        try:
            return draw_pruned(
                self.pipeline,
                self.policy,
                [job.row.prompt for job in batch],
                negative_prompt=negative_prompts(batch),
                seed=[job.seed for job in batch],
                callback_on_scale_end=watch if watchers else None,
                **self.settings,
                **settings,
            )
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError":
                raise
            raise UserError(
                f"batch_size = {len(batch)} does not fit into the GPU's memory; lower it"
            ) from error

    def _write(self, job: ImageJob, image: Image.Image, ms: dict[str, float]) -> ImageRow:
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
        write_png(path, image, provenance, compress_level=1 if self.codes else 6)
        preview = file_sha256(self._preview(job)) if self.config.preview else None
        return ImageRow(
            id=job.row.id,
            seed=job.seed,
            prompt=job.row.prompt,
            negative_prompt=job.negative_prompt,
            file=job.file,
            sha256=file_sha256(path),
            weights=self.pipeline.digest,
            ms={**ms, "write": round(1000 * (time.perf_counter() - start), 3)},
            extra=job.row.extra,
            preview=preview,
        )

    def _preview(self, job: ImageJob) -> Path:
        return self.folder.path / preview_file(job.name)


def negative_prompts(batch: Sequence[ImageJob]) -> list[str] | None:
    """One per prompt, or ``None`` when no image has one; an empty text means none."""
    texts = [job.negative_prompt or "" for job in batch]
    return texts if any(texts) else None
