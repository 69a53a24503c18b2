"""Which process draws which batch: a file of claims instead of messages."""

import errno
import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from infinity.io.files import lock_error, open_file, write_error
from infinity.io.ranks import Ranks

CLAIMS = ".claims"
POLL_S = 0.2
"""How often a process without work looks whether another one died and left some."""

_ENTRY = np.dtype("<u2")
_TAKEN = (errno.EACCES, errno.EAGAIN)


class Claims:
    """Batches of a run, each drawn by the process that locks its two bytes of a shared file.

    The kernel drops the locks of a process that dies, so others take over what it left. The bytes
    of a batch become 1 + the images made when its rows are on the disk. They only save work: what
    is finished is decided by the manifests, so a stale view costs a batch drawn twice, never one
    lost.

    Args:
        folder: of the run.
        ranks: with a single process nothing is locked.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self._alone, self._path = ranks.alone, folder / CLAIMS
        self._file = open_file(self._path, os.O_RDWR | os.O_CREAT)

    def take(self, batch: int) -> bool:
        """Whether batch number ``batch`` is not done and now belongs to this process."""
        if self._done(batch):
            return False
        if self._alone:
            return True
        if not self._lock(batch):
            return False
        if self._done(batch):
            self.release(batch)
            return False
        return True

    def finish(self, batch: int, made: int) -> None:
        """Notes that a batch that this process took is done, ``made`` images of it just now.

        Raises:
            UserError: the disk is full.
        """
        entry = _ENTRY.type(1 + made).tobytes()
        try:
            os.pwrite(self._file.fileno(), entry, batch * _ENTRY.itemsize)
        except OSError as error:
            raise write_error(self._path, error) from error
        self.release(batch)

    def release(self, batch: int) -> None:
        """Gives a batch back."""
        if not self._alone:
            fcntl.lockf(self._file, fcntl.LOCK_UN, _ENTRY.itemsize, batch * _ENTRY.itemsize)

    def made(self) -> int:
        """Images that all processes made since the run was opened."""
        entries = self._entries().astype(np.int64)
        return int((entries - 1).clip(min=0).sum())

    def wait(self, batches: int, meanwhile: Callable[[], object]) -> bool:
        """True as soon as a batch can be taken, False when all ``batches`` are done.

        Args:
            batches: of the run.
            meanwhile: called at every look.
        """
        while True:
            meanwhile()
            entries = self._entries()
            open_batches = [*np.flatnonzero(entries == 0), *range(len(entries), batches)]
            if not open_batches:
                return False
            for batch in map(int, open_batches):
                if self.take(batch):
                    self.release(batch)
                    return True
            time.sleep(POLL_S)

    def close(self) -> None:
        self._file.close()

    def _lock(self, batch: int) -> bool:
        size = _ENTRY.itemsize
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, size, batch * size)
        except OSError as error:
            if error.errno in _TAKEN:
                return False
            raise lock_error(self._path, error) from error
        return True

    def _done(self, batch: int) -> bool:
        size = _ENTRY.itemsize
        return any(os.pread(self._file.fileno(), size, batch * size))

    def _entries(self) -> np.ndarray:
        size = os.fstat(self._file.fileno()).st_size // _ENTRY.itemsize * _ENTRY.itemsize
        return np.frombuffer(os.pread(self._file.fileno(), size, 0), _ENTRY)
