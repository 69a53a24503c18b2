"""The finished images of a run, looked up by file name."""

import json
from collections.abc import Iterator

from infinity.io.index import DiskIndex
from infinity.io.rows import ImageRow


class FinishedImages:
    """The manifest rows of the images that are finished, by file name, in constant memory."""

    def __init__(self) -> None:
        self._rows = DiskIndex()
        self.weights: dict[str, str] = {}
        """Digest of weights → an image that they made."""

    def add(self, row: ImageRow) -> bool:
        """Whether the row is new."""
        self.weights.setdefault(row.weights, row.file)
        return self._rows.add(row.file, row.to_line())

    def replace(self, row: ImageRow) -> None:
        """Puts a row in the place of another one of the same image."""
        self._rows.replace(row.file, row.to_line())

    def get(self, file: str) -> ImageRow | None:
        line = self._rows.get(file)
        return None if line is None else _row(line)

    def values(self) -> Iterator[ImageRow]:
        return map(_row, self._rows.values())

    def __contains__(self, file: str) -> bool:
        return file in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def close(self) -> None:
        self._rows.close()


def _row(line: bytes) -> ImageRow:
    return ImageRow(**json.loads(line))
