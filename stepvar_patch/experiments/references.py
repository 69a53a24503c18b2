"""``${key}`` references of a config, measured before anything follows them."""

import re
from collections.abc import Sequence
from typing import Any

MAX_CHARACTERS = 1 << 20
_REFERENCE = re.compile(r"(?<!\\)\$\{([^{}]*)\}")
_PLAIN = re.compile(r"\s*(\.*)([\w-]+(?:[.\[][\w-]+\]?)*)\s*")


class TooLong(ValueError):
    """The values would grow beyond measure; nothing more should be done with them."""


def check_references(tree: Any) -> None:
    """Makes sure that following all references gives a text of sane length.

    Args:
        tree: plain values.

    Raises:
        TooLong: the result.
        ValueError: a reference that is more than a key or leads to itself; the message starts with
            the path of the value.
    """
    _Measure(tree).of(())


class _Measure:
    def __init__(self, tree: Any) -> None:
        self._tree = tree
        self._known: dict[tuple[str, ...], int] = {}
        self._open: set[tuple[str, ...]] = set()

    def of(self, path: tuple[str, ...]) -> int:
        """Characters of the value at ``path`` once its references are followed."""
        if path in self._known:
            return self._known[path]
        name = ".".join(path)
        if path in self._open:
            raise ValueError(f"{name}: the reference leads back to itself")
        self._open.add(path)
        size = self._size(path, _at(self._tree, path))
        self._open.remove(path)
        if size > MAX_CHARACTERS:
            raise TooLong(
                f"{name or 'all of it'}: is longer than {MAX_CHARACTERS} characters when filled in"
            )
        self._known[path] = size
        return size

    def _size(self, path: tuple[str, ...], value: Any) -> int:
        if isinstance(value, dict):
            return 1 + sum(self.of((*path, key)) for key in value)
        if isinstance(value, list):
            return 1 + sum(self.of((*path, str(index))) for index in range(len(value)))
        if not isinstance(value, str):
            return 1
        size = len(value)
        for inside in _REFERENCE.findall(value):
            size += self.of(target) if (target := self._target(path, inside)) else 0
        if "${" in _REFERENCE.sub("", value).replace("\\${", ""):
            raise ValueError(f"{'.'.join(path)}: write references as ${{key}}, not nested")
        return size

    def _target(self, path: tuple[str, ...], inside: str) -> tuple[str, ...] | None:
        plain = _PLAIN.fullmatch(inside)
        if plain is None:
            written = f"${{{inside[:80]}}}"
            raise ValueError(f"{'.'.join(path)}: '{written}' is no reference to a key")
        dots, words = plain[1], re.split(r"[.\[]", plain[2].replace("]", ""))
        start = path[: len(path) - len(dots)] if dots else ()
        target = (*start, *words)
        return target if _at(self._tree, target) is not None else None


def _at(tree: Any, path: Sequence[str]) -> Any:
    for key in path:
        if isinstance(tree, dict):
            tree = tree.get(key)
        elif isinstance(tree, list) and key.isdecimal() and int(key) < len(tree):
            tree = tree[int(key)]
        else:
            return None
    return tree
