"""Prompt files in: ``.txt``, a folder of ``.txt``, ``.jsonl`` or ``.csv``, as a stream of rows."""

import csv
import hashlib
import json
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infinity.errors import UserError
from infinity.io.index import DiskIndex

MAX_LINE_BYTES = 65_536
"""Longest line read; a longer one is a mistake in the file, not a prompt."""

MAX_ID_BYTES = 160
"""Longest id in UTF-8, so that ``<id>_<seed>.preview.png`` fits every file system's 255 bytes."""

MAX_SEED = 2**53 - 1
"""Largest seed: the largest integer that every JSON reader keeps exactly."""

_FORBIDDEN_IN_ID = frozenset('/\\:*?"<>|')
_RESERVED_STEMS = frozenset(
    ["con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))]
)


@dataclass(frozen=True, kw_only=True)
class PromptRow:
    """One row of a prompt file.

    Attributes:
        id: names the row's images; valid as part of a file name on every system.
        prompt: the text, not blank.
        seed: of the row's first image; ``None`` leaves it to `derived_seed`.
        negative_prompt: ``None`` leaves it to the run's.
        extra: fields that are not ours, kept for the manifest and the image.
        where: ``file:line``, for error messages.
    """

    id: str
    prompt: str
    seed: int | None = None
    negative_prompt: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    where: str = ""


def derived_seed(run_seed: int, row_id: str) -> int:
    """The seed of a row that names none: 32 bits of SHA-256 over ``"<run seed>:<id>"``.

    It depends on the row's id and not on its place, so rows can be added, removed or shuffled
    without changing any other row's image.

    Args:
        run_seed: seed of the run.
        row_id: id of the row.

    Returns:
        An integer in [0, 2³²).
    """
    return int.from_bytes(hashlib.sha256(f"{run_seed}:{row_id}".encode()).digest()[:4], "big")


def read_prompts(path: Path) -> Iterator[PromptRow]:
    """Yields the rows of a prompt file or folder in order.

    Rows without an id are numbered ``00001``, ``00002``, … (blank lines do not count); in a folder
    the file's stem comes first: ``animals-00001``. A ``.jsonl`` line is an object with ``prompt``
    and optionally ``id``, ``seed`` and ``negative_prompt``; a ``.csv`` has these as columns. Other
    fields are kept in ``extra``. Ids are unique regardless of case, because some file systems
    ignore it. Rows are read one by one and the ids seen are kept on disk: memory stays constant.

    Args:
        path: ``.txt``, ``.jsonl`` or ``.csv`` file, or a folder of ``.txt`` read in name order.

    Yields:
        The rows.

    Raises:
        UserError: missing, unreadable or empty file, unknown kind of file, undecodable or overlong
            line, a malformed row, an invalid id or seed, or two rows with one id.
    """
    numbered = path.suffix.lower() == ".txt" and path.is_file()
    seen = DiskIndex()
    empty = True
    try:
        for row in _rows(path):
            empty = False
            if not numbered and not seen.add(_fold(row.id), row.where.encode("utf-8", "replace")):
                earlier = (seen.get(_fold(row.id)) or b"").decode()
                raise UserError(
                    f"{row.where}: id {row.id!r} is already used by {earlier}; ids must be unique "
                    "(upper and lower case count as the same)"
                )
            yield row
    finally:
        seen.close()
    if empty:
        raise UserError(f"prompts: {path} holds no prompt; give at least one")


def check_id(text: str, where: str) -> str:
    """The id itself, when it can safely be part of a file name.

    Args:
        text: the id as given.
        where: ``file:line``, for the message.

    Returns:
        ``text``.

    Raises:
        UserError: empty, too long, a path, a hidden or reserved name, or unprintable characters.
    """

    def fail(reason: str) -> UserError:
        return UserError(f"{where}: id {text[:80]!r} {reason}")

    if not text or text != text.strip():
        raise fail("must be a name without blanks at its ends")
    if any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") for c in text):
        raise fail("has an unprintable character; use letters, digits, '-', '_' and '.'")
    if bad := sorted(_FORBIDDEN_IN_ID.intersection(text)):
        raise fail(f"contains {' '.join(bad)}; an id names a file, so it cannot be a path")
    if ".." in text or text[0] == "." or text[-1] == ".":
        raise fail("must not start or end with '.' or contain '..'")
    if _fold(text).partition(".")[0] in _RESERVED_STEMS:
        raise fail("is a reserved device name on some systems; choose another")
    if len(text.encode()) > MAX_ID_BYTES:
        raise fail(f"is longer than {MAX_ID_BYTES} bytes")
    return text


def _fold(text: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def _rows(path: Path) -> Iterator[PromptRow]:
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


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Decoded lines without their end, numbered from 1; a byte-order mark is dropped."""
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            where = f"{path}:{number}"
            if len(raw) > MAX_LINE_BYTES:
                raise UserError(f"{where}: the line is longer than {MAX_LINE_BYTES} bytes")
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{where}: byte {error.start + 1} is not UTF-8; save the file as UTF-8"
                ) from error
            yield number, text.removesuffix("\n").removesuffix("\r")


def _read_txt(path: Path, prefix: str = "") -> Iterator[PromptRow]:
    index = 0
    for number, line in _lines(path):
        if line.strip():
            index += 1
            fields = {"prompt": line.strip()}
            yield _row(fields, f"{prefix}{index:05d}", f"{path}:{number}")


def _read_jsonl(path: Path) -> Iterator[PromptRow]:
    index = 0
    for number, line in _lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        index += 1
        try:
            fields = json.loads(line, parse_constant=_reject_constant)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not a JSON object ({error})") from error
        if not isinstance(fields, dict):
            raise UserError(f'{where}: must be a JSON object such as {{"prompt": "a red apple"}}')
        if isinstance(fields.get("id"), int) and not isinstance(fields["id"], bool):
            fields["id"] = str(fields["id"])
        yield _row(fields, f"{index:05d}", where)


def _reject_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _read_csv(path: Path) -> Iterator[PromptRow]:
    line = 0

    def text_lines() -> Iterator[str]:
        nonlocal line
        for number, text in _lines(path):
            line = number
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
            if len(cells) != len(header):
                raise UserError(
                    f"{where}: {len(cells)} cells, but the header names {len(header)} columns"
                )
            index += 1
            fields: dict[str, Any] = dict(zip(header, cells, strict=True))
            for name in ("id", "seed", "negative_prompt"):
                if not fields.get(name, "x").strip():
                    del fields[name]
            if (seed := fields.get("seed", "").strip()).isdecimal() and len(seed) < 20:
                fields["seed"] = int(seed)
            yield _row(fields, f"{index:05d}", where)
    except csv.Error as error:
        raise UserError(f"{path}:{line}: not readable as CSV ({error})") from error


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


_READERS: dict[str, Callable[[Path], Iterator[PromptRow]]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
}


def _row(fields: dict[str, Any], default_id: str, where: str) -> PromptRow:
    prompt = fields.pop("prompt", None)
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"{where}: 'prompt' must be a text that is not blank, not {prompt!r}")
    negative = fields.pop("negative_prompt", None)
    if not (negative is None or isinstance(negative, str)):
        raise UserError(f"{where}: 'negative_prompt' must be a text, not {negative!r}")
    for name, text in (("prompt", prompt), ("negative_prompt", negative or "")):
        for c in text:
            if c not in "\t\n\r" and unicodedata.category(c) in ("Cc", "Cs"):
                raise UserError(f"{where}: '{name}' has the control character U+{ord(c):04X}")
    seed = fields.pop("seed", None)
    if not (seed is None or (type(seed) is int and 0 <= seed <= MAX_SEED)):
        raise UserError(f"{where}: 'seed' must be a whole number from 0 to 2^53-1, not {seed!r}")
    row_id = fields.pop("id", None)
    if not (row_id is None or isinstance(row_id, str)):
        raise UserError(f"{where}: 'id' must be a text, not {row_id!r}")
    try:
        json.dumps(fields, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: a further field cannot be kept as JSON ({error})") from error
    return PromptRow(
        id=check_id(default_id if row_id is None else row_id, where),
        prompt=prompt,
        seed=seed,
        negative_prompt=negative,
        extra=fields,
        where=where,
    )
