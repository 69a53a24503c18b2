"""What a report can show, whatever kind of result it was read from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Speed = Literal["flops", "time"]

SPEEDS: Mapping[Speed, str] = {"flops": "times fewer FLOPs", "time": "times less time"}


@dataclass(frozen=True, kw_only=True)
class Metric:
    """How a quality is shown.

    Attributes:
        title: for axes and columns, with its unit.
        digits: after the point.
        more_is_better: direction.
    """

    title: str
    digits: int
    more_is_better: bool = True


METRICS: Mapping[str, Metric] = {
    "psnr_db": Metric(title="PSNR, dB", digits=2),
    "ssim": Metric(title="SSIM", digits=4),
}
"""The qualities that get a chart; others are shown in tables only."""


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
    """Texts in rows; the first column names the row."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One finished picture of a run folder.

    Attributes:
        key: prompt, id and seed, by which pictures of several runs stand side by side.
        picture: PNG file.
        masks: strip of ``stepvar show-masks`` for the same picture, if it is in the folder.
    """

    key: tuple[str, str, int]
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
