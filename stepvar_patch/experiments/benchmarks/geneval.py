"""GenEval: a numbered folder per prompt with its metadata and four samples."""

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from infinity.errors import UserError
from infinity.io.files import write_atomic
from infinity.io.prompts import PromptRow
from infinity.io.strict_json import parse_json
from stepvar_patch.experiments.benchmarks.layout import copy, open_picture, prompt_row

RELATIONS = ("left of", "right of", "above", "below")


class GenEval:
    """``<00000>/metadata.jsonl`` and ``<00000>/samples/0000.png`` to ``0003.png``.

    Source: Ghosh et al. 2023; layout of the official program's readme.
    """

    name, images = "geneval", 4

    def prompts(self, path: Path) -> list[PromptRow]:
        """The rows of ``evaluation_metadata.jsonl``; a row's object is kept as ``geneval``."""
        try:
            lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read ({error})") from error
        if not lines:
            raise UserError(f"{path}: holds no prompt")
        rows = []
        for number, line in enumerate(lines):
            metadata = checked_metadata(line, f"{path}:{number + 1}")
            where = f"{path}:{number + 1}"
            rows.append(prompt_row(f"{number:05d}", metadata["prompt"], where, geneval=metadata))
        return rows

    def files(self, row: PromptRow) -> Sequence[PurePosixPath]:
        folder = PurePosixPath(row.id)
        samples = [folder / "samples" / f"{k:04d}.png" for k in range(self.images)]
        return [folder / "metadata.jsonl", *samples]

    def write(self, folder: Path, row: PromptRow, pictures: Sequence[Path]) -> None:
        metadata, *samples = (folder / file for file in self.files(row))
        for picture, sample in zip(pictures, samples, strict=True):
            copy(picture, sample)
        line = json.dumps(row.extra["geneval"], ensure_ascii=False) + "\n"
        write_atomic(metadata, lambda file: file.write(line.encode()))

    def read(self, folder: Path, row: PromptRow) -> list[Image.Image]:
        return [open_picture(folder / file) for file in self.files(row)[1:]]


def checked_metadata(line: str, where: str) -> dict[str, Any]:
    """What a prompt asks for, once it is known to be well formed.

    Raises:
        UserError: not an object with ``tag``, ``prompt`` and lists of requirements.
    """
    try:
        found = parse_json(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not a JSON object ({error})") from error
    if not isinstance(found, dict):
        raise UserError(f"{where}: not a JSON object")
    for name in ("tag", "prompt"):
        if not isinstance(found.get(name), str):
            raise UserError(f"{where}: {name} must be a text")
    for part in ("include", "exclude"):
        rules = found.get(part, [])
        if not isinstance(rules, list):
            raise UserError(f"{where}: {part} must be a list")
        for index, rule in enumerate(rules):
            _check_rule(rule, index, f"{where}: {part}[{index}]")
    return found


def _check_rule(rule: object, index: int, where: str) -> None:
    if not isinstance(rule, dict) or not isinstance(rule.get("class"), str):
        raise UserError(f"{where} must have a class")
    if type(rule.get("count")) is not int or rule["count"] < 1:
        raise UserError(f"{where} must have a count of at least 1")
    if "position" in rule:
        place = rule["position"]
        if not (isinstance(place, list) and len(place) == 2 and place[0] in RELATIONS):
            raise UserError(f"{where}.position must be [relation, index]; {', '.join(RELATIONS)}")
        if type(place[1]) is not int or not 0 <= place[1] < index:
            raise UserError(f"{where}.position must refer to an earlier requirement")
