"""YAML files and ``key=value`` words in, validated dataclasses out; all mistakes told at once."""

import os
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf

from infinity.errors import Mistakes, UserError
from infinity.io.small_yaml import growth
from stepvar_patch.experiments.problems import Problem, find_problems, parse
from stepvar_patch.experiments.references import TooLong
from stepvar_patch.experiments.tree import (
    UNREADABLE,
    at,
    expand,
    matching,
    read_yaml,
    replace,
    resolve,
    text_keys,
    told,
)

T = TypeVar("T")

FROM_FILE = "from_file"
"""Metadata key of a field whose mapping may be given as the path of a YAML file that holds it."""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """What a file and the command line say, right or wrong.

    Attributes:
        values: plain, references followed; ``None`` where a value could not be had.
        problems: every mistake.
        unknown: names of the fields whose value is wrong, or rests on what is.
    """

    values: dict[str, Any]
    problems: tuple[Problem, ...]
    unknown: frozenset[str]


def load_config(schema: type[T], path: Path, overrides: Sequence[str] = ()) -> T:
    """A config from a YAML file, with single values replaced from the command line.

    Args:
        schema: frozen dataclass that pydantic can validate.
        path: the YAML file.
        overrides: ``key=value`` words, applied in order; see `read_config`.

    Returns:
        The validated config.

    Raises:
        Mistakes: every one in the file, in the files it names and in the overrides.
    """
    draft = read_config(schema, path, overrides)
    if draft.problems:
        raise Mistakes(list(map(str, draft.problems)))
    return parse(schema, draft.values)


def read_config(schema: type[Any], path: Path, overrides: Sequence[str] = ()) -> Draft:
    """The values of a YAML file, with single ones replaced, and all that is wrong with them.

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
        Values and mistakes.

    Raises:
        UserError: the file itself cannot be read.
    """
    return _Reader(schema, path).draft(overrides)


class _Reader:
    def __init__(self, schema: type[Any], path: Path) -> None:
        self._schema, self._path = schema, path
        self._here = os.path.dirname(path) or "."
        self._tree = read_yaml(path)
        self._included = list(_included(schema))
        self._origin: dict[tuple[str, ...], str] = {}
        self._problems: list[Problem] = []
        self._lost: list[tuple[str, ...]] = []

    def draft(self, overrides: Sequence[str]) -> Draft:
        self._include()
        for word in overrides:
            self._override(word)
        values = self._resolved()
        found = find_problems(self._schema, values, str(self._path), self._origin)
        further = [problem for problem in found if not self._is_lost(problem.keys)]
        problems = (*self._problems, *further)
        tops = {keys[0] for keys in (*self._lost, *(problem.keys for problem in problems)) if keys}
        return Draft(values=values, problems=problems, unknown=frozenset(tops))

    def _is_lost(self, keys: Sequence[str]) -> bool:
        """Whether a value's mistake is known already, so that what follows from it is not told."""
        return any(tuple(keys[: len(lost)]) == lost for lost in self._lost)

    def _lose(self, keys: tuple[str, ...], source: str, text: str) -> None:
        self._problems.append(Problem(source, text, keys))
        self._lost.append(keys)
        replace(self._tree, keys, None)

    def _override(self, word: str) -> None:
        source = f"argument '{_printable(word)}'"
        try:
            written, value = _parse_override(self._schema, word)
            if self._is_lost(written):
                return
            for keys in expand(self._tree, written):
                replace(self._tree, keys, value)
                self._origin[tuple(keys)] = source
        except ValueError as error:
            top = tuple(word.partition("=")[0].split(".")[:1]) if "=" in word else ()
            self._problems.append(Problem(source, str(error), top))
        else:
            self._include()

    def _include(self) -> None:
        """Puts the content of YAML files in the place of their paths."""
        for path in self._included:
            for keys in matching(self._tree, path):
                if not isinstance(at(self._tree, keys), str):
                    continue
                file = Path(at(self._resolved(), keys) or "")
                if self._is_lost(keys):
                    continue
                name = tuple(keys)
                try:
                    content = resolve(read_yaml(file, ".".join(keys)), os.path.dirname(file) or ".")
                except UserError as error:
                    self._lose(name, "", str(error))
                except UNREADABLE as error:
                    self._lose(name, str(file), told(error))
                else:
                    replace(self._tree, keys, content)
                    self._origin[name] = str(file)

    def _resolved(self) -> dict[str, Any]:
        """The tree with its references followed; what leads nowhere is told and lost."""
        while True:
            try:
                return resolve(self._tree, self._here)
            except UNREADABLE as error:
                text = told(error)
                top = re.split(r"[.\[:]", text)[0]
                known = top in self._tree and not self._is_lost((top,))
                if isinstance(error, TooLong) or not known:
                    self._problems.append(Problem(str(self._path), text))
                    raise Mistakes(list(map(str, self._problems))) from error
                self._lose((top,), str(self._path), text)
                self._lost += [(key,) for key, value in self._tree.items() if "${" in str(value)]


def _printable(text: str) -> str:
    """The text on one line."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _included(schema: type[Any], *above: str) -> Iterator[list[str]]:
    """Paths of the fields that may name a file; ``*`` stands for every key of a mapping."""
    for field in fields(schema):
        if field.metadata.get(FROM_FILE):
            yield [*above, field.name]
        hint = _hints(schema)[field.name]
        if get_origin(hint) is Mapping and is_dataclass(value := get_args(hint)[1]):
            yield from _included(cast(Any, value), *above, field.name, "*")


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
        return keys, text_keys(parsed[0])
    except UNREADABLE as error:
        raise ValueError(f"{path} = {text!r} is not a YAML value") from error


def _is_text(schema: type[Any], name: str) -> bool:
    hint = _hints(schema).get(name)
    members = set(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else {hint}
    return members - {type(None)} == {str}


def _hints(schema: type[Any]) -> dict[str, Any]:
    return get_type_hints(schema)
