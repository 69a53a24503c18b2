"""YAML files and ``key=value`` words in, validated dataclasses out; all mistakes told at once."""

import io
import os
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from infinity.errors import UserError
from infinity.io.small_yaml import growth, read_small_yaml
from stepvar_patch.experiments.problems import Key, Problem, find_problems, parse, report
from stepvar_patch.experiments.references import check_references

T = TypeVar("T")

FROM_FILE = "from_file"
"""Metadata key of a field whose mapping may be given as the path of a YAML file that holds it."""


_UNREADABLE = (
    *(OSError, ValueError, TypeError, AttributeError, KeyError, IndexError, RecursionError),
    *(yaml.YAMLError, OmegaConfBaseException),
)
"""What PyYAML and OmegaConf raise on damaged text, and what reading it may."""


def load_config(schema: type[T], path: Path, overrides: Sequence[str] = ()) -> T:
    """A config from a YAML file, with single values replaced from the command line.

    ``${key}`` refers to another value and ``${here}`` to the folder of the file. An override is
    ``a.b.3.c=value``: a given value replaces the old one whole, a number indexes a list, and ``*``
    stands for every key of a mapping. For a field that is a text the value is taken as it stands,
    for others it is read as YAML. A field marked ``FROM_FILE`` may name a YAML file, whose values
    later overrides then change.

    Args:
        schema: frozen dataclass that pydantic can validate.
        path: the YAML file.
        overrides: ``key=value`` words, applied in order.

    Returns:
        The validated config.

    Raises:
        UserError: the file cannot be read, or any mistake in the file or the overrides.
    """
    here = os.path.dirname(path) or "."
    tree = _read_yaml(path)
    problems: list[Problem] = []
    origin: dict[tuple[str, ...], str] = {}
    included = list(_included(schema))
    try:
        _include(tree, included, here, origin)
        for word in overrides:
            source = f"argument '{_printable(word)}'"
            try:
                written, value = _parse_override(schema, word)
                for keys in _expand(tree, written):
                    _replace(tree, keys, value)
                    origin[tuple(keys)] = source
            except ValueError as error:
                problems.append(Problem(source, str(error)))
            else:
                _include(tree, included, here, origin)
        values = _resolve(tree, here)
    except UserError:
        raise
    except _UNREADABLE as error:
        key = getattr(error, "full_key", None)
        text = f"{key}: {_first_line(error)}" if key else _first_line(error)
        problems.append(Problem(str(path), text))
        raise UserError(report(problems)) from error
    problems += find_problems(schema, values, str(path), origin)
    if problems:
        raise UserError(report(problems))
    return parse(schema, values)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = io.StringIO(read_small_yaml(path))
        tree = OmegaConf.to_container(OmegaConf.load(text), resolve=False)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{path}:{line}: not valid YAML ({error.problem})") from error
    except UserError:
        raise
    except _UNREADABLE as error:
        reason = getattr(error, "strerror", None) or _first_line(error)
        raise UserError(f"config: cannot read {path} ({reason})") from error
    if not isinstance(tree, dict):
        raise UserError(f"config: {path} must hold 'key: value' lines")
    return {str(key): _text_keys(value) for key, value in tree.items()}


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _printable(text: str) -> str:
    """The text on one line."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _text_keys(value: Any) -> Any:
    """The value with every key of its mappings as text, as JSON and overrides have them."""
    if isinstance(value, dict):
        return {str(key): _text_keys(part) for key, part in value.items()}
    return [_text_keys(part) for part in value] if isinstance(value, list) else value


def _included(schema: type[Any], *above: str) -> Iterator[list[str]]:
    """Paths of the fields that may name a file; ``*`` stands for every key of a mapping."""
    for field in fields(schema):
        if field.metadata.get(FROM_FILE):
            yield [*above, field.name]
        hint = _hints(schema)[field.name]
        if get_origin(hint) is Mapping and is_dataclass(value := get_args(hint)[1]):
            yield from _included(cast(Any, value), *above, field.name, "*")


def _include(
    tree: dict[str, Any], paths: list[list[str]], here: str, origin: dict[tuple[str, ...], str]
) -> None:
    """Puts the content of YAML files in the place of their paths."""
    for path in paths:
        for keys in _matching(tree, path):
            if isinstance(_at(tree, keys), str):
                file = Path(_at(_resolve(tree, here), keys))
                _replace(tree, keys, _resolve(_read_yaml(file), os.path.dirname(file) or "."))
                origin[tuple(keys)] = str(file)


def _matching(tree: Any, path: list[str]) -> list[list[str]]:
    try:
        return list(_expand(tree, path))
    except ValueError:
        return []


def _at(tree: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _resolve(tree: dict[str, Any], here: str) -> Any:
    check_references({"here": here, **tree})
    config = OmegaConf.create({"here": here, **tree})
    values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    if isinstance(values, dict) and "here" not in tree:
        del values["here"]
    return values


def _parse_override(schema: type[Any], word: str) -> tuple[list[str], Any]:
    path, separator, text = word.partition("=")
    keys = path.split(".")
    if not separator or not all(keys) or not path.isprintable():
        raise ValueError("an override must be written key=value")
    if _is_text(schema, path):
        nullable = type(None) in get_args(_hints(schema)[path])
        return keys, None if nullable and text == "null" else text
    try:
        if problem := growth(f"- {text}"):
            raise ValueError(f"{path} {problem}")
        parsed: Any = OmegaConf.to_container(OmegaConf.create(f"- {text}"), resolve=False)
        return keys, _text_keys(parsed[0])
    except _UNREADABLE as error:
        raise ValueError(f"{path} = {text!r} is not a YAML value") from error


def _is_text(schema: type[Any], name: str) -> bool:
    hint = _hints(schema).get(name)
    members = set(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else {hint}
    return members - {type(None)} == {str}


def _hints(schema: type[Any]) -> dict[str, Any]:
    return get_type_hints(schema)


def _expand(tree: Any, keys: Sequence[str]) -> Iterator[list[str]]:
    """The paths that a path with ``*`` stands for."""
    if "*" not in keys:
        yield list(keys)
        return
    at = keys.index("*")
    node = tree
    for key in keys[:at]:
        node = node.get(key) if isinstance(node, dict) else None
    if not isinstance(node, dict) or not node:
        raise ValueError(f"{'.'.join(keys[: at + 1])} matches nothing")
    for key in list(node):
        yield from _expand(tree, [*keys[:at], key, *keys[at + 1 :]])


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
