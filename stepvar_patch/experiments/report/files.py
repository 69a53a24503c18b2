"""Files of results, which are not trusted: read whole, checked, told in one sentence when wrong."""

import json
import re
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import TypeAdapter, ValidationError

from infinity.errors import UserError
from infinity.io.strict_json import unique_keys

T = TypeVar("T")
MAX_BYTES = 64 * 2**20
_PLAIN = (
    (r"a dictionary or an instance of \w+|a valid dictionary", "an object"),
    (r"a valid tuple", "a list"),
    (r"a valid integer", "an integer"),
    (r"a valid ", "a "),
    (r"Field required", "is required"),
)
_LARGEST = 1e30
"""Beyond it nothing was measured, and charts and quotients run over."""


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        UserError: missing, unreadable, larger than 64 MiB, or no UTF-8.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path} is larger than {MAX_BYTES >> 20} MiB")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text in UTF-8") from error


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UserError: unreadable, or no JSON object of numbers up to 1e30.
    """
    try:
        value = json.loads(
            read_text(path),
            parse_constant=_refuse,
            parse_float=_figure,
            parse_int=_whole,
            object_pairs_hook=unique_keys,
        )
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object")
    return value


def fit(schema: type[T], value: object, path: Path) -> T:
    """A value held to a dataclass; fields that it does not know are ignored.

    Raises:
        UserError: a field is missing or of the wrong kind.
    """
    try:
        return TypeAdapter(schema).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        message = first["msg"].replace("Input should be", "must be")
        for pattern, plain in _PLAIN:
            message = re.sub(pattern, plain, message)
        given = "" if first["type"] == "missing" else f", not {str(first['input'])[:60]!r}"
        raise UserError(f"{path}: {where}: {message}{given}") from error


def _figure(text: str) -> float:
    value = float(text)
    if abs(value) > _LARGEST:
        raise ValueError(f"{text[:40]} is too large to be a figure")
    return value if abs(value) * _LARGEST > 1 else 0.0


def _whole(text: str) -> int:
    _figure(text)
    return int(text)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")
