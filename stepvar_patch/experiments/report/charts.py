"""The charts of a report, as SVG text that takes its ink from the page around it."""

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from infinity.errors import UserError
from stepvar_patch.experiments.report.model import SPEEDS, Arm, Bars, Profile, Quality, Speed
from stepvar_patch.experiments.table.schema import COLUMNS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH_IN = 4.6
_LEAST_HEIGHT_IN = 3.1
_LABEL_IN = 0.155
"""Height of a line of text beside a chart."""

_MOST_LABELS = 40
_LEAST_SPEED_RANGE = 0.5
"""So that speed-ups that are equal but for rounding look equal."""

_LABEL_CHARACTERS = 30
_INK = "#010203"
"""Stands for the colour of the page's text until `svg` puts that in its place."""

_SOFT = "#010204"
_COLOURS = (
    *("#3b7dd8", "#e0732c", "#2f9e5b", "#d0435b", "#8a63d2", "#a9802f", "#d15fa8", "#6b7a89"),
    *("#1ba3b5", "#8fa321"),
)
_MARKERS = "osD^vPXh"
_ABOVE: Any = {"xytext": (3, 4), "textcoords": "offset points"}
_LEADER: Any = {"arrowstyle": "-", "lw": 0.5, "alpha": 0.5, "relpos": (0, 0.5)}
_FONTS = "DejaVu Sans, system-ui, sans-serif"
_SHORTER: Sequence[tuple[re.Pattern[str], Any]] = (
    (re.compile(r'(?<==")[^"<>]*(?=")'), lambda value: _rounded(value[0])),
    (re.compile(r"font-family: [^;\"]*; "), ""),
    (re.compile(r' id="[a-z0-9]+_\d+"'), ""),
    (re.compile(r' transform="rotate\(-0 [^"]*"'), ""),
    (re.compile(r'(?<=style=")[^"]*'), lambda style: re.sub("([:;]) ", r"\1", style[0])),
    (re.compile(r">\s+<"), "><"),
)
"""What makes a chart smaller and changes nothing that is seen; names never stand in attributes."""

_SETTINGS = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.parse_math": False,
    "text.color": _INK,
    "axes.edgecolor": _SOFT,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _SOFT,
    "grid.alpha": 0.18,
    "axes.grid": True,
    "axes.axisbelow": True,
}


def speed_quality(arms: Sequence[Arm], speed: Speed, metric: str) -> str | None:
    """Quality against speed-up: one colour per series, its name beside the chart.

    Args:
        arms: of any number of results.
        speed: the horizontal axis.
        metric: name in `METRICS`, the vertical axis.

    Returns:
        SVG, or None when fewer than two arms have both values.
    """
    series: dict[str, list[Arm]] = {}
    column = COLUMNS[metric]
    for arm in arms:
        if speed in arm.speeds and metric in arm.quality:
            series.setdefault(arm.series, []).append(arm)
    if sum(map(len, series.values())) < 2:
        return None
    with _figure(f"{speed} {metric}", min(len(series), _MOST_LABELS)) as (figure, axes):
        ends = {}
        for index, (name, members) in enumerate(series.items()):
            members = sorted(members, key=lambda arm: arm.speeds[speed])
            xs = [arm.speeds[speed] for arm in members]
            ys = [arm.quality[metric].value * column.factor for arm in members]
            errors = [_reach(arm.quality[metric], column.factor) for arm in members]
            colour, marker = _style(index)
            shown = list(zip(*errors, strict=True)) if any(map(any, errors)) else None
            axes.errorbar(xs, ys, shown, color=colour, marker=marker, ms=5, lw=1.2, elinewidth=0.7)
            for arm, x, y in zip(members, xs, ys, strict=True):
                if len(members) > 1 and arm.point and not _same(arm.point, x):
                    axes.annotate(_short(arm.point), (x, y), fontsize=7, color=colour, **_ABOVE)
            ends[name] = (xs[-1], ys[-1], colour)
        low, high = axes.get_xlim()
        wider = max(0.0, _LEAST_SPEED_RANGE - (high - low)) / 2
        axes.set_xlim(low - wider, high + wider)
        axes.locator_params(axis="x", nbins=6)
        axes.set_xlabel(SPEEDS[speed])
        axes.set_ylabel(column.title)
        _name(axes, ends)
        return svg(figure)


def profile(found: Profile) -> str:
    """Lines along the scales, named beside the chart, as SVG."""
    lines = dict(list(found.lines.items())[:_MOST_LABELS])
    with _figure(found.title, len(lines)) as (figure, axes):
        ends = {}
        for index, (name, values) in enumerate(lines.items()):
            known = [(si, v) for si, v in enumerate(values) if v is not None]
            if known:
                xs, ys = [si for si, _ in known], [v for _, v in known]
                axes.plot(xs, ys, color=_style(index)[0], marker=".", lw=1.2)
                ends[name] = (xs[-1], ys[-1], _style(index)[0])
        axes.set_xlabel("scale")
        axes.set_ylabel(found.title)
        axes.locator_params(axis="x", integer=True)
        _name(axes, ends)
        return svg(figure)


def bars(found: Bars) -> str:
    """Stacked horizontal bars, one per arm, as SVG."""
    from matplotlib import colormaps

    names = list(found.rows)
    height = 0.9 + 0.32 * len(names) + _LABEL_IN * math.ceil(len(found.stages) / 5)
    with _figure(found.title, 0, height) as (figure, axes):
        shades = colormaps["viridis"]
        starts = [0.0] * len(names)
        for index, stage in enumerate(found.stages):
            widths = [found.rows[name][index] for name in names]
            shade = shades(0.08 + 0.84 * index / max(1, len(found.stages) - 1))
            axes.barh(range(len(names)), widths, left=starts, color=shade, height=0.66, label=stage)
            starts = [start + width for start, width in zip(starts, widths, strict=True)]
        axes.set_yticks(range(len(names)), [_short(name) for name in names])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(found.title)
        legend = {"frameon": False, "fontsize": 7.5, "ncols": 5, "handlelength": 1}
        figure.legend(loc="outside lower left", **legend)
        return svg(figure)


def svg(figure: "Figure") -> str:
    """A figure as an ``svg`` element; its ink is the ``color`` of the element around it."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor").replace(_SOFT, "currentColor")
    for pattern, shorter in _SHORTER:
        text = pattern.sub(shorter, text)
    return text.replace("<svg", f'<svg font-family="{_FONTS}"', 1).strip()


def standalone(text: str) -> str:
    """An `svg` as the text of a file that stands on white wherever it is shown."""
    head, rest = text.split(">", 1)
    style = 'style="color: #1d2127; background: #fff"'
    return f'<?xml version="1.0" encoding="utf-8"?>\n{head} {style}>{rest}'


@contextmanager
def _figure(
    name: str, labels: int, height_in: float | None = None
) -> Iterator[tuple["Figure", "Axes"]]:
    """An empty chart that is high enough for its labels, the settings in force around it."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            "a report needs matplotlib for its charts; pip install 'stepvar[plots]'"
        ) from error
    height = height_in or max(_LEAST_HEIGHT_IN, 0.7 + _LABEL_IN * labels)
    settings: Any = {**_SETTINGS, "svg.hashsalt": name}
    with mpl.rc_context(settings):
        figure = Figure(figsize=(_WIDTH_IN, height), layout="constrained")
        yield figure, figure.subplots()


def _same(label: str, value: float) -> bool:
    """Whether a label only repeats a value that is read off the axis: an arm's target met."""
    try:
        return math.isclose(float(label), value, rel_tol=0.02)
    except ValueError:
        return False


def _reach(quality: Quality, factor: float) -> tuple[float, float]:
    """How far the shown interval goes below and above the shown value."""
    low = quality.value if quality.low is None else quality.low
    high = quality.value if quality.high is None else quality.high
    return max(0.0, quality.value - low) * factor, max(0.0, high - quality.value) * factor


def _name(axes: "Axes", ends: Mapping[str, tuple[float, float, str]]) -> None:
    """Names at the right, in the order of their lines' ends and clear of each other."""
    shown = dict(list(ends.items())[:_MOST_LABELS])
    height_in = axes.figure.get_size_inches()[1] - 0.7  # type: ignore[union-attr]
    step = min(_LABEL_IN / height_in, 1 / max(1, len(shown)))
    low, high = axes.get_ylim()
    wanted = sorted((y - low) / (high - low) for _, y, _ in shown.values())
    places = _apart(wanted, step)
    order = sorted(shown, key=lambda name: shown[name][1])
    for name, place in zip(order, places, strict=True):
        x, y, colour = shown[name]
        axes.annotate(
            _short(name),
            (x, y),
            xytext=(1.06, place),
            textcoords="axes fraction",
            color=colour,
            fontsize=8,
            verticalalignment="center",
            annotation_clip=False,
            arrowprops={**_LEADER, "color": colour},
        )


def _apart(wanted: Sequence[float], step: float) -> list[float]:
    """Rising places near the wanted ones, at least ``step`` apart, within 0 and 1 if they fit."""
    places: list[float] = []
    for want in wanted:
        places.append(max(want, places[-1] + step) if places else want)
    ceiling = 1.0
    for index in reversed(range(len(places))):
        places[index] = min(places[index], ceiling)
        ceiling = places[index] - step
    return places


def _style(index: int) -> tuple[str, str]:
    return _COLOURS[index % len(_COLOURS)], _MARKERS[index // len(_COLOURS) % len(_MARKERS)]


def _rounded(attribute: str) -> str:
    attribute = re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", attribute)
    return " ".join(attribute.split())


def _short(text: str) -> str:
    text = "".join(sign if sign.isprintable() else " " for sign in text)
    text = " ".join(text.split())
    if len(text) <= _LABEL_CHARACTERS:
        return text
    half = _LABEL_CHARACTERS // 2  # arms of one family differ at their ends
    return f"{text[: half - 1].rstrip()}…{text[-half:]}"
