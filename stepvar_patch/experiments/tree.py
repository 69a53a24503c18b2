"""Plain values of a YAML file as a tree: read safely, followed, searched and changed by path."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from infinity.errors import UserError
from infinity.io.small_yaml import read_small_yaml
from stepvar_patch.experiments.problems import Key
from stepvar_patch.experiments.references import check_references

UNREADABLE = (
    *(OSError, ValueError, TypeError, AttributeError, KeyError, IndexError, RecursionError),
    *(yaml.YAMLError, OmegaConfBaseException),
)
"""What PyYAML and OmegaConf raise on damaged text, and what reading it may."""


def read_yaml(path: Path, name: str = "config") -> dict[str, Any]:
    """The mapping in a YAML file, its keys as text and its references as they are written.

    Args:
        path: the file; it is not trusted.
        name: what named it, for messages.

    Raises:
        UserError: unreadable, too large, not YAML, or not a mapping.
    """
    try:
        text = io.StringIO(read_small_yaml(path))
        tree = OmegaConf.to_container(OmegaConf.load(text), resolve=False)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{path}:{line}: not valid YAML ({error.problem})") from error
    except UserError:
        raise
    except UNREADABLE as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{name}: cannot read {path} ({reason})") from error
    if not isinstance(tree, dict):
        raise UserError(f"{name}: {path} must hold 'key: value' lines")
    return {str(key): text_keys(value) for key, value in tree.items()}


def first_line(error: Exception) -> str:
    """What an exception says, without its further lines."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def told(error: Exception) -> str:
    """What an exception of `UNREADABLE` says, on one line, the path of the value first."""
    key = getattr(error, "full_key", None)
    return f"{key}: {first_line(error)}" if key else first_line(error)


def text_keys(value: Any) -> Any:
    """The value with every key of its mappings as text, as JSON and overrides have them."""
    if isinstance(value, dict):
        return {str(key): text_keys(part) for key, part in value.items()}
    return [text_keys(part) for part in value] if isinstance(value, list) else value


def matching(tree: Any, path: list[str]) -> list[list[str]]:
    """`expand`, with no paths where a ``*`` stands for nothing."""
    try:
        return list(expand(tree, path))
    except ValueError:
        return []


def at(tree: Any, keys: Sequence[str]) -> Any:
    """The value at a path of keys; ``None`` if there is none."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def resolve(tree: dict[str, Any], here: str) -> dict[str, Any]:
    """The tree with its references followed.

    Args:
        tree: of a file.
        here: the file's folder.

    Raises:
        Exception: one of `UNREADABLE`, for a reference that leads nowhere or too far.
    """
    check_references({"here": here, **tree})
    config = OmegaConf.create({"here": here, **tree})
    values = cast(
        dict[str, Any], OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    )
    if "here" not in tree:
        del values["here"]
    return values


def expand(tree: Any, keys: Sequence[str]) -> Iterator[list[str]]:
    """Yields the paths that a path with ``*`` stands for.

    Raises:
        ValueError: a ``*`` stands for nothing.
    """
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
        yield from expand(tree, [*keys[:at], key, *keys[at + 1 :]])


def replace(tree: Any, keys: Sequence[str], value: object) -> None:
    """Puts a value at a path; mappings on the way are made.

    Raises:
        ValueError: the path leads through something that has no such part.
    """
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
