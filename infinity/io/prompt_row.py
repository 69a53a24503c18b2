"""One row of a prompt file: what it may say, and the sentence for what it may not."""

import json
import unicodedata
from dataclasses import dataclass, field
from typing import Any

from infinity.errors import Mistakes, UserError

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


def make_row(fields: dict[str, Any], default_id: str, where: str) -> PromptRow:
    """A row from the fields of a line.

    Args:
        fields: by name; emptied of those that are ours.
        default_id: of a row that names none.
        where: ``file:line``, for messages.

    Raises:
        Mistakes: all of the row.
    """
    found: list[str] = []
    prompt = fields.pop("prompt", None)
    if not isinstance(prompt, str) or not prompt.strip():
        found.append(f"'prompt' must be a text that is not blank, not {_shown(prompt)}")
        prompt = ""
    negative = fields.pop("negative_prompt", None)
    if not (negative is None or isinstance(negative, str)):
        found.append(f"'negative_prompt' must be a text, not {_shown(negative)}")
        negative = None
    for name, text in (("prompt", prompt), ("negative_prompt", negative or "")):
        if control := next(filter(_is_control, text), None):
            found.append(f"'{name}' has the control character U+{ord(control):04X}")
    seed = fields.pop("seed", None)
    if not (seed is None or (type(seed) is int and 0 <= seed <= MAX_SEED)):
        found.append(f"'seed' must be a whole number from 0 to 2^53-1, not {_shown(seed)}")
    row_id = fields.pop("id", None)
    if row_id is None:
        row_id = default_id
    if not isinstance(row_id, str):
        found.append(f"'id' must be a text, not {_shown(row_id)}")
    elif reason := _unfit(row_id):
        found.append(f"id {row_id[:80]!r} {reason}")
    try:
        json.dumps(fields, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        found.append(f"a further field cannot be kept as JSON ({error})")
    if found:
        raise Mistakes([f"{where}: {sentence}" for sentence in found])
    return PromptRow(
        id=row_id,
        prompt=prompt,
        seed=seed,
        negative_prompt=negative,
        extra=fields,
        where=where,
    )


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
    if reason := _unfit(text):
        raise UserError(f"{where}: id {text[:80]!r} {reason}")
    return text


def fold(text: str) -> str:
    """The id as a file system that ignores case and composition sees it."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def _unfit(text: str) -> str | None:
    """Why a text cannot be an id."""
    if not text or text != text.strip():
        return "must be a name without blanks at its ends"
    if any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") for c in text):
        return "has an unprintable character; use letters, digits, '-', '_' and '.'"
    if bad := sorted(_FORBIDDEN_IN_ID.intersection(text)):
        return f"contains {' '.join(bad)}; an id names a file, so it cannot be a path"
    if ".." in text or text[0] == "." or text[-1] == ".":
        return "must not start or end with '.' or contain '..'"
    if fold(text).partition(".")[0] in _RESERVED_STEMS:
        return "is a reserved device name on some systems; choose another"
    if len(text.encode()) > MAX_ID_BYTES:
        return f"is longer than {MAX_ID_BYTES} bytes"
    return None


def _is_control(character: str) -> bool:
    return character not in "\t\n\r" and unicodedata.category(character) in ("Cc", "Cs")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
