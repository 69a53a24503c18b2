"""Rows of a run's manifest: one per finished image."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from infinity.io.files import file_sha256
from infinity.io.strict_json import parse_json

MAX_ROW_BYTES = 1 << 20
"""Longest line that is taken for a row; a prompt row is at most 64 KiB."""


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
        preview: SHA-256 of the strip of scales beside the PNG; ``None`` if none was asked for.
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
    preview: str | None = None

    def to_line(self) -> bytes:
        """The row as a line of JSON, its end included."""
        text = json.dumps(asdict(self), ensure_ascii=False, allow_nan=False)
        return text.encode() + b"\n"


def image_name(row_id: str, seed: int) -> str:
    """File name of an image without its suffix; the part after the last ``_`` is the seed."""
    return f"{row_id}_{seed}"


def preview_file(name: str) -> str:
    """File of the strip that shows an image after each scale."""
    return f"{name}.preview.png"


def parse_row(line: bytes) -> ImageRow | None:
    """The row in a line of a manifest; ``None`` if the line is not a whole, well-formed row."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = ImageRow(**parse_json(line))
        if not _well_formed(row):
            return None
        row.to_line()
    except (ValueError, TypeError, RecursionError):
        return None
    return row


def manifest_rows(path: Path) -> Iterator[ImageRow | None]:
    """The rows of a manifest in order, ``None`` for what is no row; memory stays bounded."""
    with path.open("rb") as file:
        while line := file.readline(MAX_ROW_BYTES):
            whole = line.endswith(b"\n")
            yield parse_row(line)
            while not whole and (rest := file.readline(MAX_ROW_BYTES)):
                whole = rest.endswith(b"\n")


def is_finished(folder: Path, row: ImageRow) -> bool:
    """Whether a row's image is in the folder, a file of its own, and has the row's checksum."""
    name = image_name(row.id, row.seed)
    return row.file == f"{name}.png" and _has(folder / row.file, row.sha256)


def has_preview(folder: Path, row: ImageRow) -> bool:
    """Whether the strip beside a finished image is as it was written, if there is to be one."""
    name = preview_file(image_name(row.id, row.seed))
    return row.preview is None or _has(folder / name, row.preview)


def _has(file: Path, sha256: str) -> bool:
    return not file.is_symlink() and file.is_file() and file_sha256(file) == sha256


def _well_formed(row: ImageRow) -> bool:
    texts = (row.id, row.prompt, row.file, row.sha256, row.weights)
    return (
        all(isinstance(text, str) for text in texts)
        and type(row.seed) is int
        and "/" not in row.file
        and "\0" not in row.file
        and isinstance(row.negative_prompt, str | None)
        and isinstance(row.preview, str | None)
        and isinstance(row.ms, dict)
        and isinstance(row.extra, dict)
    )
