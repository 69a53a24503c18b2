"""A mapping on disk, for runs whose rows do not belong into memory."""

import sqlite3
from collections.abc import Iterator

from infinity.errors import UserError

_CACHE_KIB = 4096


class DiskIndex:
    """Text → bytes in a temporary file that vanishes with the object; memory stays constant.

    Raises:
        UserError: the temporary folder is full.
    """

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)
        for pragma in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{_CACHE_KIB}"):
            self._database.execute(f"PRAGMA {pragma}")
        self._run("CREATE TABLE entries (key BLOB PRIMARY KEY, value BLOB)")
        self._run("BEGIN")
        self._count = 0

    def add(self, key: str, value: bytes) -> bool:
        """Whether ``key`` was new; the entry of a known key stays as it is."""
        sql = "INSERT OR IGNORE INTO entries VALUES (?, ?)"
        new = self._run(sql, _bytes(key), value).rowcount == 1
        self._count += new
        return new

    def replace(self, key: str, value: bytes) -> None:
        """Gives a known key another value; its place stays."""
        self._run("UPDATE entries SET value = ? WHERE key = ?", value, _bytes(key))

    def get(self, key: str) -> bytes | None:
        """The value of a key."""
        found = self._run("SELECT value FROM entries WHERE key = ?", _bytes(key)).fetchone()
        return None if found is None else found[0]

    def values(self) -> Iterator[bytes]:
        """The values in the order in which they were added."""
        for (value,) in self._run("SELECT value FROM entries ORDER BY rowid"):
            yield value

    def __contains__(self, key: str) -> bool:
        return self.get(key) is not None

    def __len__(self) -> int:
        return self._count

    def close(self) -> None:
        self._database.close()

    def _run(self, sql: str, *values: bytes) -> sqlite3.Cursor:
        try:
            return self._database.execute(sql, values)
        except sqlite3.Error as error:
            raise UserError(
                f"temporary folder: cannot be used for the index of the run ({error}); "
                "free some space or set TMPDIR to a folder that has some"
            ) from error


def _bytes(key: str) -> bytes:
    return key.encode("utf-8", "surrogatepass")
