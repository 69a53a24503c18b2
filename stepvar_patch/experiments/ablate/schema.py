"""What an ablation file may say, and the cells that it stands for."""

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, MinLen
from pydantic import ConfigDict

from infinity.errors import UserError
from stepvar_patch.experiments.loading import load_config
from stepvar_patch.experiments.pruning import STRICT
from stepvar_patch.experiments.schema import FilePath, GenerateConfig

Words = tuple[Annotated[str, MinLen(3)], ...]
Value = bool | int | float | str | None | tuple[bool | int | float | str | None, ...]


@dataclass(frozen=True, kw_only=True)
class AblateConfig:
    """One run of ``stepvar ablate``: cells that differ in some fields of a generate config.

    Every cell of ``cells`` is crossed with every point of ``grid``.

    Attributes:
        config: the generate config that all cells start from.
        output: folder of rows, tables and plots; an interrupted ablation is resumed there.
        images: how many images every cell draws, the first of the prompt file.
        flop_images: on how many of them, the first, operations are counted. Counting takes time, so
            these pictures give quality and FLOPs, and the others quality and time.
        set: ``key=value`` words for all cells.
        cells: label → ``key=value`` words.
        grid: field path → values; ``*`` in a path stands for every key of a mapping.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    config: FilePath
    output: FilePath
    images: Annotated[int, Ge(1)] = 8
    flop_images: Annotated[int, Ge(0)] = 1
    set: Words = ()
    cells: Mapping[str, Words] = field(default_factory=dict)
    grid: Mapping[str, Annotated[tuple[Value, ...], MinLen(1)]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.cells and not self.grid:
            raise ValueError("an ablation needs cells, a grid, or both")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One row of the table to be.

    Attributes:
        label: unique in the ablation.
        series: the label in ``cells``; empty when there is a grid alone.
        point: field path → value of the grid.
        config: resolved.
    """

    label: str
    series: str
    point: dict[str, Any]
    config: GenerateConfig


def expand(ablation: AblateConfig) -> list[Cell]:
    """The cells in the order of the file, the grid's last axis fastest.

    Raises:
        UserError: the mistakes of all cells together.
    """
    cells: list[Cell] = []
    problems: dict[str, str] = {}
    names = _axis_names(list(ablation.grid))
    for series, point in _points(ablation):
        axes = zip(names, point.values(), strict=True)
        values = ", ".join(f"{axis}={_word(value)}" for axis, value in axes)
        label = " ".join(part for part in (series, values) if part)
        words = [
            *ablation.set,
            *ablation.cells.get(series, ()),
            *(f"{path}={_word(value)}" for path, value in point.items()),
        ]
        try:
            config = load_config(GenerateConfig, Path(ablation.config), words)
        except UserError as error:
            problems.setdefault(str(error), label)
        else:
            cells.append(Cell(label=label, series=series, point=point, config=config))
    if problems:
        raise UserError("\n".join(f"cell '{label}': {text}" for text, label in problems.items()))
    labels = [cell.label for cell in cells]
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise UserError(f"grid: two cells have the label '{twice}'; give other values or names")
    return cells


def _points(ablation: AblateConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    for series in ablation.cells or [""]:
        for values in itertools.product(*ablation.grid.values()):
            yield series, dict(zip(ablation.grid, values, strict=True))


def _axis_names(paths: list[str]) -> list[str]:
    """The last part of every path, or all of it where two axes would share a name."""
    short = [path.rpartition(".")[2] for path in paths]
    return short if len(set(short)) == len(short) else paths


def _word(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
