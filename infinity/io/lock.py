"""The lock of a run folder: one run at a time, of one process or of many."""

import fcntl
import os
import time
from pathlib import Path
from typing import BinaryIO

from infinity.errors import UserError
from infinity.io.files import lock_error, open_file, write_error
from infinity.io.ranks import Ranks

LOCK = ".lock"
PATIENCE_S = 3.0
"""How long a process waits for the first of its own launch to name the run in the lock."""

_POLL_S = 0.05


class RunLock:
    """Membership in the run that owns a folder.

    The first process holds the lock alone while it opens the folder; `share` lets the others of its
    launch in. A process that dies leaves at once, for the kernel drops its locks.

    Args:
        folder: exists.
        ranks: this process among those of its launch.

    Attributes:
        first: whether this process came first and must open the folder.

    Raises:
        UserError: another run owns the folder, or the lock cannot be written.
    """

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self._folder, self._ranks = folder, ranks
        self._file = open_file(folder / LOCK, os.O_RDWR | os.O_CREAT)
        self._own: BinaryIO | None = None
        self.first = False
        try:
            if not ranks.alone:
                self._own = self._rank_lock()
            self._join()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def share(self) -> None:
        """Lets the other processes of the launch in; called by the first."""
        if self._ranks.alone:
            return
        while not self._try(self._file, fcntl.LOCK_SH):
            time.sleep(_POLL_S)

    def last(self) -> bool:
        """Gives up membership; True, with the lock held alone, when no other process has any."""
        if not self._ranks.alone:
            fcntl.flock(self._file, fcntl.LOCK_UN)
            if not self._try(self._file, fcntl.LOCK_EX):
                return False
        os.ftruncate(self._file.fileno(), 0)
        for path in self._folder.glob(f"{LOCK}-*"):
            path.unlink(missing_ok=True)
        return True

    def is_current(self) -> bool:
        """Whether the folder is still the one that was locked."""
        try:
            here = os.stat(self._folder / LOCK, follow_symlinks=False)
        except OSError:
            return False
        return os.path.samestat(here, os.fstat(self._file.fileno()))

    def close(self) -> None:
        self._file.close()
        if self._own is not None:
            self._own.close()

    def _rank_lock(self) -> BinaryIO:
        file = open_file(self._folder / f"{LOCK}-{self._ranks.rank:05d}", os.O_RDWR | os.O_CREAT)
        try:
            if not self._try(file, fcntl.LOCK_EX):
                raise self._in_use()
        except BaseException:
            file.close()
            raise
        return file

    def _join(self) -> None:
        patient_until = time.monotonic() + PATIENCE_S
        while True:
            if self._try(self._file, fcntl.LOCK_EX):
                self.first = True
                self._write_name()
                return
            if self._ranks.alone:
                raise self._in_use()
            ours = os.pread(self._file.fileno(), 4096, 0) == self._ranks.run.encode()
            if ours and self._try(self._file, fcntl.LOCK_SH):
                return
            if not ours and time.monotonic() > patient_until:
                raise self._in_use()
            time.sleep(_POLL_S)

    def _write_name(self) -> None:
        try:
            os.ftruncate(self._file.fileno(), 0)
            os.pwrite(self._file.fileno(), self._ranks.run.encode(), 0)
        except OSError as error:
            raise write_error(self._folder / LOCK, error) from error

    def _try(self, file: BinaryIO, kind: int) -> bool:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise lock_error(self._folder / LOCK, error) from error
        return True

    def _in_use(self) -> UserError:
        return UserError(f"output: {self._folder} is in use by another run")
