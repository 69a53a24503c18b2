"""Plain values held to a dataclass: every mistake as a clause with field, value and remedy."""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from infinity.errors import Mistakes

T = TypeVar("T")
Key = str | int


@dataclass(frozen=True)
class Problem:
    """One mistake.

    Attributes:
        source: where it was given; empty if the text says so.
        text: a clause that starts with the field's path.
        keys: that path; empty when several fields together are at fault, or none.
    """

    source: str
    text: str
    keys: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.source}: {self.text}" if self.source else self.text


def parse(schema: type[T], values: object) -> T:
    """A validated config from plain values.

    Args:
        schema: frozen dataclass that pydantic can validate.
        values: what YAML or JSON hold.

    Returns:
        The config.

    Raises:
        pydantic.ValidationError: a value does not fit; a `ValueError`.
    """
    return TypeAdapter(schema).validate_json(json.dumps(values), strict=True)


def describe(schema: type[Any], values: object, source: str) -> str | None:
    """What is wrong with plain values, as one text, or ``None`` when nothing is."""
    problems = list(find_problems(schema, values, source, {}))
    return str(Mistakes(list(map(str, problems)))) if problems else None


def find_problems(
    schema: type[Any], values: object, source: str, origin: Mapping[tuple[str, ...], str]
) -> Iterator[Problem]:
    """Every mistake in plain values.

    Args:
        schema: frozen dataclass that pydantic can validate.
        values: what YAML or JSON hold.
        source: names the file in sentences.
        origin: path of a value → the argument that gave it, if it is not from the file.

    Yields:
        The mistakes, those of one place as one.
    """
    try:
        parse(schema, values)
    except ValidationError as error:
        found: dict[tuple[Key, ...], list[tuple[Any, str, bool]]] = {}
        for detail in error.errors(include_url=False):
            keys = _real_keys(detail["loc"], values, missing=detail["type"] == "missing")
            given = detail["input"]
            if detail["type"] in ("union_tag_invalid", "union_tag_not_found"):
                keys = (*keys, "kind")
                given = detail.get("ctx", {}).get("tag")
            clause = _clause(schema, keys, detail, values)
            other_kind = detail["type"].endswith("_type")
            found.setdefault(keys, []).append((given, clause, other_kind))
        for keys, clauses in found.items():
            if any(len(other) > len(keys) > 0 and other[: len(keys)] == keys for other in found):
                continue
            given, path = clauses[0][0], ".".join(map(str, keys))
            # Of the kinds that a value may have, the one that it has tells what is wrong.
            own = [clause for _, clause, other_kind in clauses if not other_kind]
            told = " or ".join(dict.fromkeys(own or [clause for _, clause, _ in clauses]))
            told = told.replace(" or must be ", " or ")
            missing = "is required" in told or not keys
            text = f"{path} {told}" if missing else f"{path} = {given!r} {told}"
            names = tuple(map(str, keys))
            by = [word for at, word in origin.items() if at[: len(names)] == names[: len(at)]]
            yield Problem(by[-1] if names and by else source, text.strip(), names)


def nearest(word: str, valid: Sequence[str]) -> str:
    """A hint at the valid word that was probably meant, or at all of them."""
    near = difflib.get_close_matches(word, valid, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else f"valid are {', '.join(valid)}"


def _real_keys(location: Sequence[Key], values: Any, *, missing: bool) -> tuple[Key, ...]:
    """The location without pydantic's names for the branches of a union; its end may be
    missing."""
    keys: list[Key] = []
    node = values
    for position, key in enumerate(location):
        inside = (isinstance(node, dict) and key in node) or (
            isinstance(node, list) and isinstance(key, int) and key < len(node)
        )
        if inside:
            node = node[key]
            keys.append(key)
        elif missing and position == len(location) - 1 and isinstance(node, dict):
            keys.append(key)
    return tuple(keys)


def _clause(schema: type[Any], keys: tuple[Key, ...], detail: Any, values: object) -> str:
    if detail["type"] == "union_tag_not_found":
        kinds = _kinds(schema, keys[:-1], values)
        return f"is required; valid are {', '.join(kinds)}"
    if detail["type"] == "union_tag_invalid":
        kinds = _kinds(schema, keys[:-1], values)
        return f"is an unknown kind; {nearest(str(detail['ctx']['tag']), kinds)}"
    if detail["type"] == "missing":
        return "is too short" if isinstance(detail["loc"][-1], int) else "is required"
    if detail["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        levels = _levels(schema, keys[:-1], values)
        valid = sorted({f.name for level in levels for f in fields(level)})
        return f"is an unknown key; {nearest(str(keys[-1]), valid)}"
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"])
    if detail["type"] in ("string_too_short", "too_short"):
        least = detail["ctx"]["min_length"]
        what = "characters" if detail["type"] == "string_too_short" else "items"
        return "must not be empty" if least == 1 else f"must have at least {least} {what}"
    message = detail["msg"].replace("Input should be", "must be").replace("array", "list")
    message = message.replace("valid tuple", "list").replace("valid integer", "integer")
    return str(message.replace("a integer", "an integer").replace("a valid ", "a "))


def _kinds(schema: type[Any], keys: Sequence[Key], values: object) -> list[str]:
    return [kind for level in _levels(schema, keys, values) for kind in _kind_of(level)]


def _kind_of(level: type[Any]) -> tuple[str, ...]:
    """The values that a member of a discriminated union gives to its ``kind``."""
    return get_args(get_type_hints(level).get("kind"))


def _levels(schema: type[Any], keys: Sequence[Key], values: Any) -> list[type[Any]]:
    """The dataclasses that the value at ``keys`` may be; its ``kind`` decides, if it names one."""
    hints: list[Any] = [schema]
    node = values
    for key in keys:
        found = [level for hint in hints for level in _dataclasses_in(hint)]
        found = _chosen(found, node)
        node = node[key] if isinstance(node, dict) and key in node else None
        named = [get_type_hints(level).get(str(key)) for level in found]
        hints = [hint for hint in named if hint is not None] or hints
    return _chosen([level for hint in hints for level in _dataclasses_in(hint)], node)


def _chosen(levels: list[type[Any]], node: Any) -> list[type[Any]]:
    kind = node.get("kind") if isinstance(node, dict) else None
    return [level for level in levels if kind in _kind_of(level)] or levels


def _dataclasses_in(hint: Any) -> list[type[Any]]:
    if isinstance(hint, type) and is_dataclass(hint):
        return [hint]
    return [found for part in get_args(hint) for found in _dataclasses_in(part)]
