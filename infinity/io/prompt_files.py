"""The kinds of prompt files, each read as a stream of rows and of mistakes in its lines."""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from infinity.errors import UserError
from infinity.io.prompt_row import PromptRow, make_row
from infinity.io.strict_json import parse_json

MAX_LINE_BYTES = 65_536
"""Longest line read; a longer one is a mistake in the file, not a prompt."""

MAX_SKIPPED_BYTES = 1 << 24
"""After so much of an overlong line nothing more is read: it is no prompt file."""

Found = PromptRow | UserError
"""A row, or what is wrong with its line; reading goes on with the next one."""

Line = tuple[int, str | UserError]


def read_rows(path: Path) -> Iterator[Found]:
    """Yields the rows of a prompt file or folder in order, and its mistakes where they are.

    Args:
        path: ``.txt``, ``.jsonl`` or ``.csv`` file, or a folder of ``.txt`` read in name order.

    Yields:
        Rows and mistakes.

    Raises:
        UserError: missing or unreadable, of another kind, or broken so that no later line counts.
    """
    try:
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".txt")
            if not files:
                raise UserError(f"prompts: the folder {path} holds no .txt file")
            for file in files:
                yield from _read_txt(file, prefix=f"{file.stem}-")
            return
        if not path.is_file():
            raise UserError(f"prompts: {path} does not exist or is neither a file nor a folder")
        reader = _READERS.get(path.suffix.lower())
        if reader is None:
            kinds = ", ".join(_READERS)
            raise UserError(f"prompts: {path} must be a {kinds} file or a folder of .txt files")
        yield from reader(path)
    except OSError as error:
        raise UserError(f"prompts: cannot read {path} ({error.strerror or error})") from error


def _lines(path: Path) -> Iterator[Line]:
    """Decoded lines without their end, numbered from 1; a byte-order mark is dropped."""
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            where = f"{path}:{number}"
            if len(raw) > MAX_LINE_BYTES:
                too_long = UserError(f"{where}: the line is longer than {MAX_LINE_BYTES} bytes")
                if not raw.endswith(b"\n") and not _ends(file):
                    raise too_long
                yield number, too_long
                continue
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                sentence = f"byte {error.start + 1} is not UTF-8; save the file as UTF-8"
                yield number, UserError(f"{where}: {sentence}")
                continue
            yield number, text.removesuffix("\n").removesuffix("\r")


def _ends(file: BinaryIO) -> bool:
    """Reads on to the end of a line, unless that is too far away."""
    for _ in range(MAX_SKIPPED_BYTES // MAX_LINE_BYTES):
        raw = file.readline(MAX_LINE_BYTES)
        if not raw or raw.endswith(b"\n"):
            return True
    return False


def _row(fields: dict[str, Any], default_id: str, where: str) -> Found:
    try:
        return make_row(fields, default_id, where)
    except UserError as error:
        return error


def _read_txt(path: Path, prefix: str = "") -> Iterator[Found]:
    index = 0
    for number, line in _lines(path):
        if isinstance(line, UserError):
            yield line
        elif line.strip():
            index += 1
            fields = {"prompt": line.strip()}
            yield _row(fields, f"{prefix}{index:05d}", f"{path}:{number}")


def _read_jsonl(path: Path) -> Iterator[Found]:
    index = 0
    for number, line in _lines(path):
        if isinstance(line, UserError):
            yield line
        elif line.strip():
            index += 1
            yield _jsonl_row(line, f"{index:05d}", f"{path}:{number}")


def _jsonl_row(line: str, default_id: str, where: str) -> Found:
    try:
        fields = parse_json(line)
    except (ValueError, RecursionError) as error:
        return UserError(f"{where}: not a JSON object ({error})")
    if not isinstance(fields, dict):
        return UserError(f'{where}: must be a JSON object such as {{"prompt": "a red apple"}}')
    if isinstance(fields.get("id"), int) and not isinstance(fields["id"], bool):
        fields["id"] = str(fields["id"])
    return _row(fields, default_id, where)


def _read_csv(path: Path) -> Iterator[Found]:
    line = 0

    def text_lines() -> Iterator[str]:
        nonlocal line
        for number, text in _lines(path):
            line = number
            if isinstance(text, UserError):
                raise text
            yield text + "\n"

    reader = csv.reader(text_lines(), strict=True)
    header: list[str] | None = None
    index = 0
    try:
        for cells in reader:
            where = f"{path}:{line}"
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = _csv_header(cells, where)
                continue
            index += 1
            yield _csv_row(header, cells, f"{index:05d}", where)
    except csv.Error as error:
        raise UserError(f"{path}:{line}: not readable as CSV ({error})") from error


def _csv_row(header: list[str], cells: list[str], default_id: str, where: str) -> Found:
    if len(cells) != len(header):
        return UserError(f"{where}: {len(cells)} cells, but the header names {len(header)} columns")
    fields: dict[str, Any] = dict(zip(header, cells, strict=True))
    for name in ("id", "seed", "negative_prompt"):
        if not fields.get(name, "x").strip():
            del fields[name]
    if (seed := fields.get("seed", "").strip()).isdecimal() and len(seed) < 20:
        fields["seed"] = int(seed)
    return _row(fields, default_id, where)


def _csv_header(cells: list[str], where: str) -> list[str]:
    header = [cell.strip() for cell in cells]
    if "prompt" not in header:
        raise UserError(
            f"{where}: the first row must name the columns and one of them must be 'prompt', "
            f"not {', '.join(map(repr, header))[:200]}"
        )
    if len(set(header)) != len(header):
        raise UserError(f"{where}: a column is named twice")
    return header


_READERS: dict[str, Callable[[Path], Iterator[Found]]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
}
