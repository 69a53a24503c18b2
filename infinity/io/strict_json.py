"""JSON as its standard has it."""

import json
from typing import Any


def parse_json(text: str | bytes, *, finite: bool = True) -> Any:
    """The value of a JSON text.

    Args:
        text: UTF-8 if bytes.
        finite: refuse NaN and infinity, which the standard does not know.

    Raises:
        ValueError: not JSON, a key that an object has twice, or a number that is not finite.
        RecursionError: nested too deep.
    """
    constant = _reject_constant if finite else None
    return json.loads(text, parse_constant=constant, object_pairs_hook=unique_keys)


def _reject_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs, as an ``object_pairs_hook`` of `json.loads`.

    Raises:
        ValueError: a key that comes twice.
    """
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:80]!r} is given twice")
    return value
