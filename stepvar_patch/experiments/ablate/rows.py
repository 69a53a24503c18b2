"""The file of an ablation's finished rows, one line per cell and image."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from infinity.io.files import write_error

ROWS = "rows.jsonl"
"""One line per cell and image: what is finished."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One cell's picture of one prompt, against the dense one that was drawn just before.

    Attributes:
        key: of everything that decides the row; a row with another key is of another ablation.
        cell: label.
        id: of the prompt row.
        seed: of the image.
        ms: of the scale loop; None where operations were counted instead, and for the first batch
            on a GPU. In a batch every picture has its share.
        dense_ms: of the dense run's, in the same minute on the same machine.
        flops: of the scale loop, counted while it ran; None where not counted. The oracle's own
            dense run is taken off: it stands for a perfect score that costs nothing.
        dense_flops: likewise.
    """

    key: str
    cell: str
    id: str
    seed: int
    psnr_db: float
    ssim: float
    bit_agreement: tuple[float | None, ...]
    first_divergence: int | None
    ms: float | None
    dense_ms: float | None
    flops: int | None
    dense_flops: int | None


def finished_rows(path: Path) -> dict[str, Row]:
    """Rows by key; a half-written last line is no row."""
    found = {}
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        try:
            row = Row(**json.loads(line)) if line.endswith(b"\n") else None
        except (ValueError, TypeError, RecursionError):
            continue
        if row is not None:
            found[row.key] = row
    return found


def append_rows(path: Path, rows: Sequence[Row]) -> None:
    """Adds rows to the file.

    Raises:
        UserError: it cannot be written.
    """
    lines = (json.dumps(asdict(row), ensure_ascii=False, allow_nan=False) for row in rows)
    text = "".join(f"{line}\n" for line in lines)
    try:
        with path.open("ab") as file:
            if file.tell() and path.read_bytes()[-1:] != b"\n":
                text = "\n" + text
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise write_error(path, error) from error
