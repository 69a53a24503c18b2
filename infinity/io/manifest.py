"""The folder of a run: its lock, its resolved config and one manifest row per finished image."""

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import yaml

from infinity.errors import UserError
from infinity.io.files import remove_temporary, write_atomic, write_error

MANIFEST = "run.jsonl"
CONFIG = "config.yaml"
LOCK = ".lock"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ImageRow:
    """One finished image, as a line of ``run.jsonl``.

    Attributes:
        id: of the prompt row.
        seed: of this image.
        prompt: the text.
        negative_prompt: the text, or ``None``.
        file: name of the PNG in the run folder.
        sha256: of the PNG's bytes.
        weights: digest of the model that made it.
        ms: milliseconds per stage; a batch's time is shared equally among its images.
        extra: further fields of the prompt row.
    """

    id: str
    seed: int
    prompt: str
    negative_prompt: str | None
    file: str
    sha256: str
    weights: str
    ms: dict[str, float]
    extra: dict[str, Any] = field(default_factory=dict)


def image_name(row_id: str, seed: int) -> str:
    """File name of an image without its suffix; the part after the last ``_`` is the seed."""
    return f"{row_id}_{seed}"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_rows(folder: Path) -> list[ImageRow]:
    """Rows of all finished images of a run, in the order in which they were finished.

    Raises:
        UserError: the folder holds no manifest.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder}: holds no {MANIFEST}, so it is no folder of stepvar generate")
    return [row for row in _rows(path) if row is not None and _is_finished(folder, row)]


class RunFolder:
    """The output folder of one run, locked against a second run while it is open.

    An image is *finished* when its file is there, its manifest row is valid and the row's SHA-256
    is the file's. Everything else (a half-written last line, a row whose file is gone or altered,
    a temporary file) is dropped when the folder is opened, so the run makes it again.

    Args:
        path: the folder; created with its parents when missing.
        config: resolved config of this run as JSON values, written to ``config.yaml``.
        fixed: picks the part of a config that must not differ when the run is resumed.

    Raises:
        UserError: not writable, in use by another run, not a run folder, or a run that differs
            in a fixed field.
    """

    def __init__(
        self,
        path: Path,
        config: Mapping[str, Any],
        fixed: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    ) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = (path / LOCK).open("ab")
        except FileExistsError as error:
            raise UserError(f"output: {path} is a file; give a folder") from error
        except OSError as error:
            raise write_error(path, error) from error
        try:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"output: {path} is in use by another run") from error
            self._check_config(config, fixed)
            remove_temporary(path)
            self.finished: dict[str, ImageRow] = self._load_finished()
            self._write_config(config)
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.close()

    def append(self, row: ImageRow) -> None:
        """Adds one row, durably and whole: a row that does not fit on the disk leaves no trace.

        Args:
            row: describes an image that is already in the folder.

        Raises:
            UserError: the disk is full or the manifest is not writable.
        """
        line = json.dumps(asdict(row), ensure_ascii=False, allow_nan=False) + "\n"
        path = self.path / MANIFEST
        try:
            with path.open("ab", buffering=0) as file:
                size = file.tell()
                try:
                    _write_all(file, line.encode())
                    os.fsync(file.fileno())
                except BaseException:
                    file.truncate(size)
                    raise
        except OSError as error:
            raise write_error(path, error) from error
        self.finished[row.file] = row

    def _check_config(
        self,
        config: Mapping[str, Any],
        fixed: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    ) -> None:
        path = self.path / CONFIG
        if not path.exists():
            if (self.path / MANIFEST).exists():
                raise UserError(
                    f"output: {self.path} has a {MANIFEST} but no {CONFIG}; choose another folder"
                )
            return
        try:
            before = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(f"output: {path} cannot be read; choose another folder") from error
        if not isinstance(before, dict) or not before.keys() & config.keys():
            raise UserError(f"output: {path} is not the config of a run; choose another folder")
        before, now = fixed(before), fixed(json.loads(json.dumps(config)))
        names = {**now, **before}
        changed = [name for name in names if before.get(name) != now.get(name)]
        if changed:
            what = "; ".join(
                f"{name} was {json.dumps(before.get(name))}, now {json.dumps(now.get(name))}"
                for name in changed
            )
            raise UserError(
                f"output: {self.path} holds a run with other settings ({what}); "
                "choose another folder or the same settings"
            )

    def _write_config(self, config: Mapping[str, Any]) -> None:
        text = yaml.safe_dump(
            json.loads(json.dumps(config)), sort_keys=False, allow_unicode=True, width=100
        )
        write_atomic(self.path / CONFIG, lambda file: file.write(text.encode()))

    def _load_finished(self) -> dict[str, ImageRow]:
        path = self.path / MANIFEST
        if not path.exists():
            return {}
        finished: dict[str, ImageRow] = {}
        lines = 0
        for lines, row in enumerate(_rows(path), start=1):  # noqa: B007
            if row is not None and _is_finished(self.path, row):
                finished[row.file] = row
        if lines != len(finished):
            _log.warning("%s: %d unfinished rows are made again", path, lines - len(finished))
            rows = [json.dumps(asdict(row), ensure_ascii=False) for row in finished.values()]
            text = "".join(f"{row}\n" for row in rows)
            write_atomic(path, lambda file: file.write(text.encode()))
        return finished


def _is_finished(folder: Path, row: ImageRow) -> bool:
    file = folder / row.file
    return (
        row.file == f"{image_name(row.id, row.seed)}.png"
        and file.is_file()
        and file_sha256(file) == row.sha256
    )


def _rows(path: Path) -> Iterator[ImageRow | None]:
    """The rows of a manifest, ``None`` for a line that is not a whole row."""
    with path.open("rb") as file:
        for line in file:
            try:
                row = ImageRow(**json.loads(line)) if line.endswith(b"\n") else None
                if row is not None and not _well_formed(row):
                    row = None
            except (ValueError, TypeError, RecursionError):
                row = None
            yield row


def _well_formed(row: ImageRow) -> bool:
    texts = (row.id, row.prompt, row.file, row.sha256, row.weights)
    return (
        all(isinstance(text, str) for text in texts)
        and isinstance(row.seed, int)
        and "/" not in row.file
        and isinstance(row.negative_prompt, str | None)
        and isinstance(row.ms, dict)
        and isinstance(row.extra, dict)
    )


def _write_all(file: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
