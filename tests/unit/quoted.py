"""Numbers quoted in a text, and the results that they are quoted from.

Below a paragraph or table a comment names where its numbers come from::

    A picture takes 1.8 s, 2.1× fewer operations than dense.
    <!-- results/a.json: 1.8 s = sum ms.float32 / 1000 -->
    <!-- results/b/table.json: 2.1× = 1 / cells[cell=both].flop_ratio -->
    <!-- given: 12 GB -->

Left of ``=`` stands a piece of the paragraph with one number in it; right of it numbers and paths
with ``+ - * /`` from left to right. A path has keys after dots (in double quotes where they hold
other signs), ``[name=value]`` for the entry of a list that has that value, ``[-1]`` for its place;
``sum`` and ``count`` before a path take a whole list or object. ``;`` parts several numbers.
``given`` lists numbers that nobody measured: limits, sizes, hardware.
"""

import json
import operator
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_COMMENT = re.compile(r"<!--\s*(?P<file>[\w./-]+):\s+(?P<body>.*?)-->", re.DOTALL)
_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?")
_MEASURED = re.compile(
    r"(?<![\w.])\d[\d,]*(?:\.\d+)?\s?"
    r"(?:×(?!\s?\d)|dB\b|%|ms\b|s\b|min\b|minutes?\b|hours?\b|[KMGT]i?B\b|images/s|T?FLOPs?\b)"
)
_FACTOR = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d+)?)(?![\w.\"\[])|(?:(?P<whole>sum|count) )?"
    r"(?P<path>(?:\.?(?:[\w-]+|\"[^\"]*\")|\[[^\]]*\])+))\s*"
)
_SEGMENT = re.compile(r"\.?(?:(?P<key>[\w-]+)|\"(?P<quoted>[^\"]*)\"|\[(?P<entry>[^\]]*)\])")
_OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


@dataclass(frozen=True, kw_only=True)
class Block:
    """A paragraph or table, and the pieces of it that have a source.

    Attributes:
        text: without its comments.
        claims: piece of the text, file of results, expression.
        given: pieces that need no source.
    """

    text: str
    claims: list[tuple[str, str, str]]
    given: list[str]


def blocks(text: str) -> Iterator[Block]:
    """The paragraphs and tables of a Markdown text; code is left out."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^(?: {4}|\t).*$", "", text, flags=re.MULTILINE)
    for part in re.split(r"\n\s*\n(?!<!--)", text):
        claims, given = [], []
        for comment in _COMMENT.finditer(part):
            for entry in filter(str.strip, comment["body"].split(";")):
                if comment["file"] == "given":
                    given.append(" ".join(entry.split()))
                else:
                    piece, _, expression = " ".join(entry.split()).partition(" = ")
                    claims.append((piece, comment["file"], expression))
        plain = re.sub(r"<!--.*?-->", "", part, flags=re.DOTALL)
        yield Block(text=" ".join(plain.split()), claims=claims, given=given)


def problems(text: str, root: Path, *, complete: bool) -> list[str]:
    """What is wrong with the numbers of a text.

    Args:
        text: Markdown.
        root: that the files of results count from.
        complete: whether every number with a unit needs a source.
    """
    found = []
    for block in blocks(text):
        rest = re.sub(r"`[^`]*`", "", block.text)
        for piece in [piece for piece, _, _ in block.claims] + block.given:
            if piece not in block.text:
                found.append(f"'{piece}' is not in the paragraph '{block.text[:60]}…'")
            rest = rest.replace(piece, "")
        for piece, file, expression in block.claims:
            found += _wrong(piece, file, expression, root)
        if complete:
            found += [
                f"'{number[0]}' in '{block.text[:60]}…' has no source; write below it "
                f"<!-- results/FILE.json: {number[0]} = PATH -->, or <!-- given: {number[0]} --> "
                "if nobody measured it"
                for number in _MEASURED.finditer(rest)
            ]
    return found


def _wrong(piece: str, file: str, expression: str, root: Path) -> list[str]:
    numbers = _NUMBER.findall(piece)
    if len(numbers) != 1:
        return [f"'{piece}' must hold one number, it has {len(numbers)}"]
    try:
        value = evaluate(expression, json.loads((root / file).read_text()))
    except (OSError, ValueError, LookupError, TypeError, ZeroDivisionError) as error:
        return [f"'{piece}': {file}: '{expression}' has no value ({error!r})"]
    shown = numbers[0].replace(",", "")
    digits = len(shown.partition(".")[2])
    if abs(value - float(shown)) > 0.5000001 * 10**-digits:
        return [f"'{piece}' is {value:.{digits + 2}f} in {file} ('{expression}')"]
    return []


def evaluate(expression: str, data: Any) -> float:
    """The value of numbers and paths, from left to right.

    Raises:
        ValueError: the expression is not understood.
        LookupError: a path leads nowhere.
    """
    value, sign, rest = 0.0, "+", expression
    while True:
        match = _FACTOR.match(rest)
        if match is None:
            raise ValueError(f"cannot read {rest!r}")
        factor = float(match["number"]) if match["number"] else _at(match, data)
        value = _OPERATORS[sign](value, factor)
        rest = rest[match.end() :]
        if not rest:
            return value
        sign, rest = rest[0], rest[1:]
        if sign not in _OPERATORS:
            raise ValueError(f"cannot read {sign + rest!r}")


def _at(match: re.Match[str], data: Any) -> float:
    for segment in _SEGMENT.finditer(match["path"]):
        name, is_value, wanted = (segment["entry"] or "").partition("=")
        if segment["entry"] is None:
            data = data[segment["key"] or segment["quoted"]]
        elif is_value:
            (data,) = [entry for entry in data if str(entry.get(name)) == wanted]
        else:
            data = data[int(name)]
    if match["whole"]:
        values = list(data.values() if isinstance(data, dict) else data)
        return float(len(values) if match["whole"] == "count" else sum(values))
    if isinstance(data, bool | str) or data is None:
        raise TypeError(f"{data!r} is no number")
    return float(data)
