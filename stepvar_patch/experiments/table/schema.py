"""What a table file may say, and the columns that there are."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Ge, Le, MinLen
from pydantic import ConfigDict

from infinity.errors import UserError
from stepvar_patch.experiments.ablate.schema import AblateConfig, Cell, Value, Words, expand
from stepvar_patch.experiments.loading import load_config
from stepvar_patch.experiments.problems import nearest
from stepvar_patch.experiments.pruning import STRICT
from stepvar_patch.experiments.schema import Device, Dtype, FilePath
from stepvar_patch.experiments.scorers.base import MetricFiles
from stepvar_patch.experiments.scorers.distances import Protocol


@dataclass(frozen=True, kw_only=True)
class Column:
    """How a metric is shown.

    Attributes:
        title: with an arrow towards better.
        decimals: after the point.
        factor: the shown number is the value times this.
    """

    title: str
    decimals: int
    factor: float = 1.0


COLUMNS = {
    "flops": Column(title="FLOPs × ↑", decimals=2),
    "speedup": Column(title="speed-up × ↑", decimals=2),
    "loop_speedup": Column(title="loop × ↑", decimals=2),
    "ms": Column(title="ms / image ↓", decimals=1),
    "geneval": Column(title="GenEval ↑", decimals=3),
    "dpg": Column(title="DPG ↑", decimals=2),
    "fid": Column(title="FID ↓", decimals=2),
    "kid": Column(title="KID ↓", decimals=4),
    "inception_score": Column(title="IS ↑", decimals=2),
    "clip_score": Column(title="CLIP ↑", decimals=2),
    "clip_fid": Column(title="CLIP-FID ↓", decimals=3),
    "hps": Column(title="HPSv2.1 ↑", decimals=2),
    "image_reward": Column(title="ImageReward ↑", decimals=3),
    "psnr_db": Column(title="PSNR dB ↑", decimals=2),
    "ssim": Column(title="SSIM ↑", decimals=3),
    "lpips": Column(title="LPIPS ↓", decimals=3),
    "bits_last": Column(title="bits % ↑", decimals=1, factor=100),
    "name_rank": Column(title="name rank ↓", decimals=1),
    "word_rank": Column(title="word rank ↓", decimals=1),
    "top10": Column(title="top 10 % ↑", decimals=1, factor=100),
    "style": Column(title="style % ↑", decimals=1, factor=100),
    "background": Column(title="backgr. % ↑", decimals=1, factor=100),
    "count": Column(title="count % ↑", decimals=1, factor=100),
    "kernel_distance": Column(title="kernel dist. ↓", decimals=3),
    "frechet_64": Column(title="FD64 ↓", decimals=1),
}
"""Metric → column. Intervals are 95 %, by bootstrap over prompts; of times the quartiles."""

if TYPE_CHECKING:
    ColumnName = str
else:
    ColumnName = Literal[tuple(COLUMNS)]


@dataclass(frozen=True, kw_only=True)
class TableModel:
    """A model that a table can be made of.

    Attributes:
        config: the generate config that all arms start from.
        set: ``key=value`` words for it.
        columns: of the table.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    config: FilePath
    set: Words = ()
    columns: Annotated[tuple[ColumnName, ...], MinLen(1)]


@dataclass(frozen=True, kw_only=True)
class Benchmarks:
    """Official prompt files; the columns of those that are not there say so.

    Attributes:
        geneval: ``evaluation_metadata.jsonl``.
        dpg: the folder ``dpg_bench/prompts``.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    geneval: FilePath = "data/geneval/evaluation_metadata.jsonl"
    dpg: FilePath = "data/dpg_bench/prompts"


@dataclass(frozen=True, kw_only=True)
class TableConfig:
    """One run of ``stepvar table``: arms × columns for one model.

    Attributes:
        model: a key of ``models``.
        models: the models that it can be made of.
        output: folder; the table of a model and its runs are in ``<output>/<model>/``.
        images: pictures per arm, the first of the prompt file times ``images_per_prompt``; None is
            all.
        batch_size: pictures drawn at once on a GPU; None is the model's.
        device: ``cpu``, ``cuda`` or ``cuda:N``; None takes a GPU if there is one.
        dtype: None is bfloat16 on a GPU and float32 on the CPU.
        set: ``key=value`` words for all arms but dense.
        arms: label → ``key=value`` words; the dense arm is always there.
        grid: field path → values, crossed with the arms.
        published: YAML file of published values; None shows none.
        fid_protocol: how pictures are resized for Inception.
        files: local files that metrics need.
        benchmarks: official prompt files.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    model: str = "embedded"
    models: Annotated[Mapping[str, TableModel], MinLen(1)]
    output: FilePath
    images: Annotated[int, Ge(1)] | None = None
    batch_size: Annotated[int, Ge(1), Le(1024)] | None = None
    device: Device | None = None
    dtype: Dtype | None = None
    set: Words = ()
    arms: Mapping[str, Words]
    grid: Mapping[str, Annotated[tuple[Value, ...], MinLen(1)]] = field(default_factory=dict)
    published: FilePath | None = None
    fid_protocol: Protocol = "clean"
    files: MetricFiles = field(default_factory=MetricFiles)
    benchmarks: Benchmarks = field(default_factory=Benchmarks)

    def __post_init__(self) -> None:
        if self.model not in self.models:
            raise ValueError(
                f"model = {self.model!r} is unknown; {nearest(self.model, [*self.models])}"
            )
        if "dense" in self.arms:
            raise ValueError("arms: 'dense' is always there; leave it out")

    @property
    def chosen(self) -> TableModel:
        return self.models[self.model]

    @property
    def folder(self) -> Path:
        return Path(self.output) / self.model


def table_cells(table: TableConfig) -> list[Cell]:
    """The dense cell, then the arms in the order of the file, the grid's last axis fastest.

    Raises:
        UserError: the mistakes of all cells together.
    """
    model, names = table.chosen, ("batch_size", "device", "dtype")
    words = [f"{n}={v}" for n in names if (v := getattr(table, n)) is not None]
    dense = AblateConfig(
        config=model.config,
        output=table.output,
        set=(*model.set, *words, "pruning=null"),
        cells={"dense": ()},
    )
    if not (table.arms or table.grid):
        return expand(dense)
    arms = AblateConfig(
        config=model.config,
        output=table.output,
        set=(*model.set, *words, *table.set),
        cells=table.arms,
        grid=table.grid,
    )
    return [*expand(dense), *expand(arms)]


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """What a publication reports of a method.

    Attributes:
        method: name.
        model: base model, as published.
        hardware: of its times; empty where none are given.
        values: column → number.
        source: publication.
        checked: what of it was found again in a public text, and where.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    method: str
    model: str
    hardware: str = ""
    values: Mapping[ColumnName, float]
    source: Annotated[str, MinLen(5)]
    checked: str = "no"


@dataclass(frozen=True, kw_only=True)
class Published:
    """A file of published values."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    rows: tuple[PublishedRow, ...]


def load_published(path: str | None) -> tuple[PublishedRow, ...]:
    """The rows of a file of published values.

    Raises:
        UserError: the file is not what it should be.
    """
    if path is None:
        return ()
    if not Path(path).is_file():
        raise UserError(f"published: {path} does not exist")
    return load_config(Published, Path(path)).rows
