"""What a benchmark's layout is: official prompts in, pictures where the official scorer looks."""

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from PIL import Image

from infinity.errors import UserError
from infinity.io.files import make_folder, write_atomic, write_error
from infinity.io.images import open_image
from infinity.io.manifest import read_rows
from infinity.io.prompts import PromptRow, check_id
from infinity.io.rows import ImageRow
from infinity.io.strict_json import parse_json

_NAMED = 5
"""A complaint names this many missing files and counts the others."""


class Layout(Protocol):
    """One benchmark.

    Attributes:
        name: on the command line.
        images: pictures per prompt.
    """

    name: str
    images: int

    def prompts(self, path: Path) -> list[PromptRow]:
        """The prompts of the official file or folder, with what the scorer needs in ``extra``."""
        ...

    def files(self, row: PromptRow) -> Sequence[PurePosixPath]:
        """Files of one prompt that a complete folder holds."""
        ...

    def write(self, folder: Path, row: PromptRow, pictures: Sequence[Path]) -> None:
        """Puts the pictures of one prompt into the layout."""
        ...

    def read(self, folder: Path, row: PromptRow) -> list[Image.Image]:
        """The pictures of one prompt from a complete folder."""
        ...


def write_prompts(layout: Layout, source: Path, target: Path) -> int:
    """Writes a benchmark's prompts as a prompt file of ``stepvar generate`` and counts them.

    Args:
        layout: of the benchmark.
        source: the official prompt file or folder.
        target: ``.jsonl`` to write.

    Raises:
        UserError: the source is not what it should be, or the target cannot be written.
    """
    if target.suffix != ".jsonl":
        raise UserError(f"{target}: must end with .jsonl")
    rows = layout.prompts(source)
    lines = [
        json.dumps({"id": r.id, "prompt": r.prompt, **r.extra}, ensure_ascii=False) for r in rows
    ]
    make_folder(target.parent)
    write_atomic(target, lambda file: file.write("".join(f"{line}\n" for line in lines).encode()))
    return len(rows)


def export(layout: Layout, source: Path, run: Path, folder: Path) -> int:
    """Copies a run's pictures into a benchmark's layout and counts the prompts.

    Args:
        layout: of the benchmark.
        source: the official prompt file or folder.
        run: folder of ``stepvar generate`` on these prompts, ``images_per_prompt`` as the layout's.
        folder: to fill; files that are there are replaced.

    Raises:
        UserError: the run lacks pictures of a prompt, or has others.
    """
    rows = layout.prompts(source)
    by_id: dict[str, list[ImageRow]] = {}
    for image in read_rows(run):
        by_id.setdefault(image.id, []).append(image)
    lacking = []
    for row in rows:
        found = by_id.get(row.id, [])
        if any(image.prompt != row.prompt for image in found):
            raise UserError(f"{run}: id {row.id!r} has another prompt than {source}")
        if len(found) < layout.images:
            lacking.append(f"{row.id} ({len(found)} of {layout.images})")
    if lacking:
        raise UserError(f"{run}: lacks pictures of {_some(lacking)}")
    for row in rows:
        images = sorted(by_id[row.id], key=lambda image: image.seed)[: layout.images]
        try:
            layout.write(folder, row, [run / image.file for image in images])
        except OSError as error:
            raise write_error(folder, error) from error
    return len(rows)


def check_complete(layout: Layout, rows: Iterable[PromptRow], folder: Path) -> None:
    """Makes sure that a folder holds every file that the scorer will look for.

    Raises:
        UserError: names what is missing.
    """
    lacking = [
        str(file) for row in rows for file in layout.files(row) if not (folder / file).is_file()
    ]
    if lacking:
        raise UserError(f"{folder}: incomplete, {len(lacking)} files are missing: {_some(lacking)}")


def copy(source: Path, target: Path) -> None:
    """Copies a file, making its folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def open_picture(path: Path) -> Image.Image:
    """The picture as RGB.

    Raises:
        UserError: missing, or not a picture.
    """
    try:
        with open_image(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not a readable picture ({error})") from error


def read_json(path: Path) -> Any:
    """A JSON file's content.

    Raises:
        UserError: missing, or not JSON.
    """
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from error


def prompt_row(row_id: object, prompt: object, where: str, **extra: Any) -> PromptRow:
    """A row whose id and prompt are checked.

    Raises:
        UserError: the prompt is no text, or the id cannot name a file.
    """
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"{where}: the prompt must be a text that is not blank, not {prompt!r}")
    text = check_id(str(row_id), where)
    return PromptRow(id=text, prompt=" ".join(prompt.split()), extra=extra, where=where)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
