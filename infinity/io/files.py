"""Folders, checksums, and files that are whole or absent, whatever becomes of the process."""

import errno
import hashlib
import os
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

from infinity.errors import UserError

TEMPORARY_PREFIX = ".stepvar-"
TEMPORARY_SUFFIX = ".tmp"

_USERS_DISK = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than the system allows",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.ENOENT: "its folder does not exist or takes no files",
    errno.ENOTDIR: "a part of its path is not a folder",
    errno.EEXIST: "a file of that name is in the way",
    errno.EISDIR: "a folder of that name is in the way",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "it is a link, and links are not followed",
    errno.ESTALE: "the folder is gone",
    errno.EIO: "the disk reports an error",
}


def write_error(path: Path, error: OSError) -> Exception:
    """A `UserError` when the disk or its permissions are at fault, else the error itself.

    Args:
        path: the file that could not be written.
        error: what the system said.

    Returns:
        The exception to raise from ``error``.
    """
    reason = _USERS_DISK.get(error.errno or 0)
    return UserError(f"output: cannot write {path}: {reason}") if reason else error


def lock_error(path: Path, error: OSError) -> Exception:
    """Like `write_error`, for a file that could not be locked: some file systems have no locks."""
    if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
        return UserError(f"output: cannot lock {path}: its file system gives no locks")
    return write_error(path, error)


def check_writable(folder: Path, name: str) -> None:
    """Makes sure that files can be made in a folder, or in the one that it will be made in.

    A nameless file is tried there, so nothing is left behind, and root is told the truth.

    Args:
        folder: may be missing.
        name: of the setting that names it, for messages.

    Raises:
        UserError: a file is in the way, the disk is full, or the place is not writable.
    """
    place = folder
    try:
        while not os.path.lexists(place) and place != place.parent:
            place = place.parent
        if not place.is_dir():
            what = "is a file" if place.exists() else "is a link that leads nowhere"
            raise UserError(f"{name}: {place} {what}; give a folder")
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        reason = _USERS_DISK.get(error.errno or 0, error.strerror)
        if error.errno == errno.ENOENT:
            reason = f"{place} takes no files"
        raise UserError(f"{name}: cannot write into {folder}: {reason}") from error


def make_folder(folder: Path) -> None:
    """Makes a folder with its parents, if it is not there.

    Args:
        folder: to be.

    Raises:
        UserError: a file is in the way, the disk is full, or the place is not writable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from error


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal.

    Args:
        path: the file.

    Raises:
        UserError: it is not readable.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: not readable ({error.strerror})") from error


def open_file(path: Path, flags: int) -> BinaryIO:
    """An unbuffered file at exactly ``path``: a link there is not followed.

    Args:
        path: the file.
        flags: of ``os.open``.

    Raises:
        UserError: the disk is full or the place is not writable.
    """
    try:
        handle = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise write_error(path, error) from error
    mode = "rb+" if flags & os.O_RDWR else "ab"
    return cast(BinaryIO, os.fdopen(handle, mode, buffering=0))


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file beside its final place, flushes it to the disk and moves it there.

    A reader sees the old file or the whole new one. A killed process leaves at most a temporary
    file, which `remove_temporary` clears.

    Args:
        path: the file; its folder must exist.
        write: fills the open file.

    Raises:
        UserError: the disk is full or the place is not writable.
    """
    try:
        name = path.parent / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
        handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            name.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from error


def sync_folder(folder: Path) -> None:
    """Makes the names of a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_temporary(folder: Path) -> None:
    """Deletes what a killed process left half-written in a folder."""
    for file in folder.glob(f"{TEMPORARY_PREFIX}*{TEMPORARY_SUFFIX}"):
        file.unlink(missing_ok=True)
