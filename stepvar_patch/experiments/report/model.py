"""What a report can show, whatever kind of result it was read from."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Speed = Literal["flops", "loop", "time"]

_GRID_POINT = re.compile(r"(?:(?P<series>.*) )?(?P<point>[\w.*+-]+=\S.*)")

SPEEDS: Mapping[Speed, str] = {
    "flops": "times fewer FLOPs",
    "loop": "times less time in the scale loop",
    "time": "times less time for the whole picture",
}
"""How a variant can be cheaper than dense; FLOPs are those of the transformer's scale loop."""


_EVERY: tuple[Speed, ...] = ("flops", "loop", "time")
METRICS: Mapping[str, tuple[Speed, ...]] = {
    **dict.fromkeys(("psnr_db", "ssim", "frechet_64", "fid", "geneval"), _EVERY),
    **dict.fromkeys(("name_rank", "top10", "kernel_distance", "lpips", "kid"), ("flops",)),
    **dict.fromkeys(("clip_score", "hps", "image_reward", "dpg"), ("flops",)),
}
"""The qualities that get charts, and what each is drawn against; their titles are in `COLUMNS`."""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """A value over images and the interval that its source gives, if any."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One variant that was measured: a point of the speed-quality charts.

    Attributes:
        label: the variant.
        series: arms of one series are joined by a line.
        point: what sets the arm apart in its series; empty for a series of one.
        speeds: how many times cheaper than dense.
        quality: name in `METRICS` → value.
    """

    label: str
    series: str
    point: str = ""
    speeds: Mapping[Speed, float] = field(default_factory=dict)
    quality: Mapping[str, Quality] = field(default_factory=dict)


def series_of(label: str) -> tuple[str, str]:
    """The series that a cell of a grid belongs to, and its point: ``a ratio=0.5`` → a, 0.5."""
    found = _GRID_POINT.fullmatch(label)
    if found is None:
        return label, ""
    name, _, value = found["point"].rpartition("=")
    return (found["series"] or name).rstrip(","), value


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Values along the scales, one line per arm; None where a scale has no value."""

    title: str
    lines: Mapping[str, Sequence[float | None]]


@dataclass(frozen=True, kw_only=True)
class Bars:
    """Stacked times, one bar per arm.

    Attributes:
        title: of the chart.
        stages: names of the parts, in the order of time.
        rows: arm → milliseconds per stage.
    """

    title: str
    stages: Sequence[str]
    rows: Mapping[str, Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Texts in rows; the first column names the row, the others hold figures, or prose."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    prose: bool = False


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One finished picture of a run folder.

    Attributes:
        key: prompt, id and seed, by which pictures of several runs stand side by side.
        run: name of the run.
        picture: PNG file.
        masks: strip of ``stepvar show-masks`` for the same picture, if it is in the folder.
    """

    key: tuple[str, str, int]
    run: str
    picture: Path
    masks: Path | None


@dataclass(frozen=True, kw_only=True)
class Source:
    """All that one folder or file of results has to show.

    Attributes:
        title: of its section.
        path: as the user gave it.
        summary: one sentence.
        commands: that make the results.
        environment: name → value, what they were made on.
        config: text of the resolved config.
    """

    title: str
    path: str
    summary: str
    commands: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    config: str = ""
    arms: Sequence[Arm] = ()
    profiles: Sequence[Profile] = ()
    bars: Sequence[Bars] = ()
    tables: Sequence[Table] = ()
    shots: Sequence[Shot] = ()
