"""The folder of a run: its lock, its resolved config and one manifest row per finished image."""

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from infinity.errors import UserError
from infinity.io.claims import CLAIMS, Claims
from infinity.io.earlier import CONFIG, continued
from infinity.io.files import open_file, remove_temporary, write_atomic, write_error
from infinity.io.finished import FinishedImages
from infinity.io.index import DiskIndex
from infinity.io.lock import RunLock
from infinity.io.ranks import Ranks
from infinity.io.rows import ImageRow, has_preview, is_finished, manifest_rows

MANIFEST = "run.jsonl"
RANK_MANIFESTS = "run.rank-*.jsonl"
"""Manifests of the processes of a run that is at work or was killed, beside the common one."""

logger = logging.getLogger(__name__)


def read_rows(folder: Path) -> list[ImageRow]:
    """Rows of all finished images of a run.

    Raises:
        UserError: the folder holds no manifest.
    """
    paths = _manifests(folder)
    if not paths:
        raise UserError(f"{folder}: holds no {MANIFEST}, so it is no folder of stepvar generate")
    found: dict[str, ImageRow] = {}
    for path in paths:
        for row in manifest_rows(path):
            if row is not None and is_finished(folder, row):
                found.setdefault(row.file, row)
    return list(found.values())


def check_resumable(
    path: Path,
    config: Mapping[str, Any],
    fixed: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    defaults: Mapping[str, Any],
    unknown: Iterable[str] = (),
) -> None:
    """Makes sure that a run could go on in a folder, as `RunFolder` will; opens nothing.

    Args:
        path: the folder; may be missing.
        config, fixed, defaults: see `RunFolder`.
        unknown: fields that are not compared.

    Raises:
        UserError: it could not.
    """
    begun = bool(_manifests(path))
    continued(path, dict(config), fixed, defaults, begun=begun, unknown=unknown)


class RunFolder:
    """The output folder of one run, locked against a second run while it is open.

    An image is *finished* when its file is there, its manifest row is valid and the row's SHA-256
    is the file's; likewise its preview, if the row names one. Everything else (a half-written last
    line, a row whose file is gone or altered, a temporary file) is dropped when the folder is
    opened, so the run makes it again.

    Several processes of one launch may hold the folder together. The first that comes opens it, in
    the sense above; each appends to a manifest of its own; the last to leave `merge`s them.

    Args:
        path: the folder; created with its parents when missing.
        config: resolved config of this run as JSON values, written to ``config.yaml``.
        fixed: picks the part of a config that must not differ when the run is resumed.
        ranks: this process among those of its launch.
        defaults: for fields that the config leaves ``None``, unless the run was begun with others.

    Attributes:
        config: with such fields filled in.
        finished: images that were finished when the run was opened, and this process' since then.
        claims: which process draws which batch.

    Raises:
        UserError: not writable, in use by another run, not a run folder, or a run that differs
            in a fixed field.
    """

    def __init__(
        self,
        path: Path,
        config: Mapping[str, Any],
        fixed: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        ranks: Ranks = Ranks(),
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = path
        self.config = dict(config)
        name = MANIFEST if ranks.alone else RANK_MANIFESTS.replace("*", f"{ranks.rank:05d}")
        self._manifest = path / name
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise UserError(f"output: {path} is a file; give a folder") from error
        except OSError as error:
            raise write_error(path, error) from error
        self._lock = RunLock(path, ranks)
        try:
            begun = not self._lock.first or bool(_manifests(path))
            self.config = continued(path, self.config, fixed, defaults or {}, begun=begun)
            self.finished = FinishedImages()
            if self._lock.first:
                self._open()
                self._lock.share()
            else:
                for row in filter(None, _rows_of([path / MANIFEST])):
                    self.finished.add(row)
            self.claims = Claims(path, ranks)
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_error: object) -> None:
        self.claims.close()
        self.finished.close()
        self._lock.close()

    def check_present(self) -> None:
        """Makes sure that nobody removed or replaced the folder.

        Raises:
            UserError: somebody did.
        """
        if not self._lock.is_current():
            raise UserError(
                f"output: {self.path} was removed or replaced while the run was at work"
            )

    def append(self, row: ImageRow) -> None:
        """Adds one row, durably and whole: a row that does not fit on the disk leaves no trace.

        Args:
            row: describes an image that is already in the folder.

        Raises:
            UserError: the disk is full or the manifest is not writable.
        """
        self.check_present()
        line = row.to_line()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        try:
            with open_file(self._manifest, flags) as file:
                size = os.fstat(file.fileno()).st_size
                try:
                    _write_all(file, line)
                    os.fsync(file.fileno())
                except BaseException:
                    file.truncate(size)
                    raise
        except OSError as error:
            raise write_error(self._manifest, error) from error
        self.finished.add(row)

    def merge(self, files: Iterable[str]) -> bool:
        """Leaves the run; the last process to leave makes one manifest of all, in order.

        Args:
            files: names of the run's images in order; others keep their place behind them.

        Returns:
            Whether this was the last process, so that no other is at work in the folder.

        Raises:
            UserError: the disk is full or the folder is not writable.
        """
        if not self._lock.last():
            return False
        self.check_present()
        remove_temporary(self.path)
        found = self._load_finished(verified=True)
        placed = DiskIndex()

        def write(file: BinaryIO) -> None:
            for row in filter(None, map(found.get, files)):
                if placed.add(row.file, b""):
                    file.write(row.to_line())
            for row in found.values():
                if placed.add(row.file, b""):
                    file.write(row.to_line())

        if len(found):
            self._replace_manifests(write)
        found.close()
        placed.close()
        (self.path / CLAIMS).unlink(missing_ok=True)
        return True

    def _open(self) -> None:
        remove_temporary(self.path)
        (self.path / CLAIMS).unlink(missing_ok=True)
        self.finished.close()
        self.finished = self._load_finished(verified=False)
        self._write_config()

    def _write_config(self) -> None:
        text = yaml.safe_dump(
            json.loads(json.dumps(self.config)), sort_keys=False, allow_unicode=True, width=100
        )
        write_atomic(self.path / CONFIG, lambda file: file.write(text.encode()))

    def _load_finished(self, *, verified: bool) -> FinishedImages:
        """The rows of all manifests whose images are finished; the manifests are put right.

        Args:
            verified: trust rows without reading their images, unless two of one image differ.
        """
        paths = _manifests(self.path)
        finished = FinishedImages()
        rows = 0
        for row in _rows_of(paths):
            rows += 1
            if row is None:
                continue
            known = finished.get(row.file)
            if known is None:
                if verified or self._is_whole(row):
                    finished.add(row)
            elif known.sha256 != row.sha256 and self._is_whole(row):
                finished.replace(row)
        if not verified and (rows != len(finished) or any(p.name != MANIFEST for p in paths)):
            if dropped := rows - len(finished):
                logger.warning("%s: %d unfinished rows are made again", self.path, dropped)
            self._replace_manifests(
                lambda file: [file.write(row.to_line()) for row in finished.values()]
            )
        return finished

    def _is_whole(self, row: ImageRow) -> bool:
        return is_finished(self.path, row) and has_preview(self.path, row)

    def _replace_manifests(self, write: Callable[[BinaryIO], object]) -> None:
        write_atomic(self.path / MANIFEST, write)
        for path in self.path.glob(RANK_MANIFESTS):
            path.unlink(missing_ok=True)


def _manifests(folder: Path) -> list[Path]:
    """The common manifest, if it is there, and those of single processes."""
    common = [folder / MANIFEST] if (folder / MANIFEST).is_file() else []
    return common + sorted(folder.glob(RANK_MANIFESTS))


def _rows_of(paths: Iterable[Path]) -> Iterator[ImageRow | None]:
    for path in paths:
        if path.is_file():
            yield from manifest_rows(path)


def _write_all(file: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
