"""YAML files and ``key=value`` words in, validated dataclasses out; all mistakes told at once."""

import difflib
import json
import os
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from infinity.errors import UserError

T = TypeVar("T")
Key = str | int


@dataclass(frozen=True)
class Problem:
    """One mistake: where it was given, and a clause that starts with the field's path."""

    source: str
    text: str

    def __str__(self) -> str:
        return f"{self.source}: {self.text}"


def load_config(schema: type[T], path: Path, overrides: Sequence[str] = ()) -> T:
    """A config from a YAML file, with single values replaced from the command line.

    ``${key}`` refers to another value and ``${here}`` to the folder of the file. An override is
    ``a.b.3.c=value``: a given value replaces the old one whole, and a number indexes a list. For a
    field that is a text the value is taken as it stands, for others it is read as YAML.

    Args:
        schema: frozen dataclass that pydantic can validate.
        path: the YAML file.
        overrides: ``key=value`` words, applied in order.

    Returns:
        The validated config.

    Raises:
        UserError: the file cannot be read, or any mistake in the file or the overrides.
    """
    tree = _read_yaml(path)
    problems: list[Problem] = []
    origin: dict[tuple[str, ...], str] = {}
    for word in overrides:
        source = f"argument '{word}'"
        try:
            keys, value = _parse_override(schema, word)
            _replace(tree, keys, value)
        except ValueError as error:
            problems.append(Problem(source, str(error)))
        else:
            origin[tuple(keys)] = source
    try:
        values = _resolve(tree, here=os.path.dirname(path) or ".")
    except OmegaConfBaseException as error:
        text = f"{error.full_key}: {str(error).splitlines()[0]}"
        problems.append(Problem(str(path), text))
        raise UserError(_report(problems)) from error
    problems += _validate(schema, values, str(path), origin)
    if problems:
        raise UserError(_report(problems))
    return parse(schema, values)


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
    problems = list(_validate(schema, values, source, {}))
    return _report(problems) if problems else None


def _report(problems: Sequence[Problem]) -> str:
    if len(problems) == 1:
        return str(problems[0])
    return "\n  ".join([f"{len(problems)} mistakes in the configuration:", *map(str, problems)])


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{path}:{line}: not valid YAML ({error.problem})") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"config: cannot read {path} ({reason})") from error
    if not isinstance(tree, dict):
        raise UserError(f"config: {path} must hold 'key: value' lines")
    return {str(key): value for key, value in tree.items()}


def _resolve(tree: dict[str, Any], here: str) -> Any:
    config = OmegaConf.create({"here": here, **tree})
    values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    if isinstance(values, dict) and "here" not in tree:
        del values["here"]
    return values


def _parse_override(schema: type[Any], word: str) -> tuple[list[str], Any]:
    path, separator, text = word.partition("=")
    keys = path.split(".")
    if not separator or not all(keys):
        raise ValueError("an override must be written key=value")
    if _is_text(schema, path):
        nullable = type(None) in get_args(_hints(schema)[path])
        return keys, None if nullable and text == "null" else text
    try:
        parsed: Any = OmegaConf.to_container(OmegaConf.create(f"- {text}"), resolve=False)
        return keys, parsed[0]
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{path} = {text!r} is not a YAML value") from error


def _is_text(schema: type[Any], name: str) -> bool:
    hint = _hints(schema).get(name)
    members = set(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else {hint}
    return members - {type(None)} == {str}


def _hints(schema: type[Any]) -> dict[str, Any]:
    return get_type_hints(schema)


def _replace(tree: Any, keys: Sequence[str], value: object) -> None:
    node: Any = tree
    for depth, key in enumerate(keys):
        path, last = ".".join(keys[: depth + 1]), depth == len(keys) - 1
        index: Key = key
        if isinstance(node, list):
            if not key.isdecimal() or int(key) >= len(node):
                raise ValueError(f"{path} must be an index from 0 to {len(node) - 1}")
            index = int(key)
        elif not isinstance(node, dict):
            raise ValueError(f"{'.'.join(keys[:depth])} = {node!r} has no parts to set")
        if last:
            node[index] = value
        else:
            if isinstance(node, dict) and node.get(key) is None:
                node[key] = {}
            node = node[index]


def _validate(
    schema: type[Any], values: object, source: str, origin: Mapping[tuple[str, ...], str]
) -> Iterator[Problem]:
    try:
        parse(schema, values)
    except ValidationError as error:
        found: dict[tuple[Key, ...], list[tuple[Any, list[str]]]] = {}
        for detail in error.errors(include_url=False):
            keys = _real_keys(detail["loc"], values)
            found.setdefault(keys, []).append((detail["input"], _clause(schema, keys, detail)))
        for keys, clauses in found.items():
            if any(len(other) > len(keys) > 0 and other[: len(keys)] == keys for other in found):
                continue
            given, path = clauses[0][0], ".".join(map(str, keys))
            told = " or ".join(dict.fromkeys(clause for _, (clause,) in clauses))
            missing = "is required" in told or not keys
            text = f"{path} {told}" if missing else f"{path} = {given!r} {told}"
            names = tuple(map(str, keys))
            by = [word for at, word in origin.items() if at[: len(names)] == names[: len(at)]]
            yield Problem(by[-1] if names and by else source, text.strip())


def _real_keys(location: Sequence[Key], values: Any) -> tuple[Key, ...]:
    """The location without pydantic's names for the branches of a union."""
    keys: list[Key] = []
    node = values
    for position, key in enumerate(location):
        inside = (isinstance(node, dict) and key in node) or (
            isinstance(node, list) and isinstance(key, int) and key < len(node)
        )
        if inside:
            node = node[key]
            keys.append(key)
        elif position == len(location) - 1 and isinstance(node, dict):
            keys.append(key)
    return tuple(keys)


def _clause(schema: type[Any], keys: tuple[Key, ...], detail: Any) -> list[str]:
    if detail["type"] == "missing":
        return ["is required"]
    if detail["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        valid = _valid_keys(schema, keys[:-1])
        near = difflib.get_close_matches(str(keys[-1]), valid, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"valid are {', '.join(valid)}"
        return [f"is an unknown key; {hint}"]
    if detail["type"] == "value_error":
        return [str(detail["ctx"]["error"])]
    message = detail["msg"].replace("Input should be", "must be").replace("array", "list")
    message = message.replace("valid tuple", "list").replace("valid integer", "integer")
    return [message.replace("a integer", "an integer").replace("a valid ", "a ")]


def _valid_keys(schema: type[Any], keys: Sequence[Key]) -> list[str]:
    levels: list[type[Any]] = [schema]
    for key in keys:
        if isinstance(key, str):
            hints = [_hints(level).get(key) for level in levels]
            levels = [found for hint in hints for found in _dataclasses_in(hint)]
    return sorted({f.name for level in levels for f in fields(level)})


def _dataclasses_in(hint: Any) -> list[type[Any]]:
    if isinstance(hint, type) and is_dataclass(hint):
        return [hint]
    return [found for part in get_args(hint) for found in _dataclasses_in(part)]
