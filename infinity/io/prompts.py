"""Prompt files in: ``.txt``, a folder of ``.txt``, ``.jsonl`` or ``.csv``, as a stream of rows."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from infinity.errors import Mistakes, UserError, collecting
from infinity.io.index import DiskIndex
from infinity.io.prompt_files import MAX_LINE_BYTES, Found, read_rows
from infinity.io.prompt_row import MAX_SEED, PromptRow, check_id, fold

__all__ = [
    "MAX_LINE_BYTES",
    "MAX_SEED",
    "PromptRow",
    "check_id",
    "count_prompts",
    "derived_seed",
    "read_prompts",
]

MAX_TOLD = 20
"""Mistakes of one prompt file that are told; the others are counted."""


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
            line, a malformed row, an invalid id or seed, or two rows with one id; the first.
    """
    for found in _with_unique_ids(path):
        if isinstance(found, UserError):
            raise found
        yield found


def count_prompts(path: Path, images: int = 1) -> int:
    """How many rows a prompt file or folder has.

    Args:
        path: see `read_prompts`.
        images: of every row, with consecutive seeds, the last of which must be a seed too.

    Raises:
        Mistakes: all that `read_prompts` would stop at, and seeds that leave no room; the first
            `MAX_TOLD` in full.
    """
    rows = 0
    told: list[str] = []
    untold = 0
    with collecting(told):
        for found in _with_unique_ids(path):
            if isinstance(found, PromptRow) and (found.seed or 0) + images - 1 > MAX_SEED:
                found = UserError(
                    f"{found.where}: 'seed' {found.seed} is too large for {images} images with "
                    "consecutive seeds; the last may be 2^53-1"
                )
            if not isinstance(found, UserError):
                rows += 1
            elif len(told) < MAX_TOLD:
                told += found.sentences
            else:
                untold += len(found.sentences)
    if untold:
        told.append(f"prompts: {path} has {untold} more mistakes like these")
    if told:
        raise Mistakes(told)
    return rows


def _with_unique_ids(path: Path) -> Iterator[Found]:
    numbered = path.suffix.lower() == ".txt" and path.is_file()
    seen = DiskIndex()
    empty = True
    try:
        for found in read_rows(path):
            empty = False
            if (
                isinstance(found, UserError)
                or numbered
                or seen.add(fold(found.id), found.where.encode("utf-8", "replace"))
            ):
                yield found
                continue
            earlier = (seen.get(fold(found.id)) or b"").decode()
            yield UserError(
                f"{found.where}: id {found.id!r} is already used by {earlier}; ids must be unique "
                "(upper and lower case count as the same)"
            )
    finally:
        seen.close()
    if empty:
        raise UserError(f"prompts: {path} holds no prompt; give at least one")
