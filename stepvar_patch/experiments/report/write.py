"""Results to one page, and their charts to files of their own."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from infinity.io.files import make_folder, write_atomic
from stepvar_patch.experiments.maker import versions
from stepvar_patch.experiments.page import write_page
from stepvar_patch.experiments.report import charts
from stepvar_patch.experiments.report.gallery import gallery
from stepvar_patch.experiments.report.model import METRICS, SPEEDS, Arm, Bars, Source
from stepvar_patch.experiments.report.read import read_source
from stepvar_patch.experiments.table.schema import COLUMNS


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One chart: the name of its file, a caption, and the picture."""

    name: str
    caption: str
    svg: Markup


def write_report(
    paths: Sequence[Path], page: Path, plots: Path | None, command: str
) -> dict[str, Any]:
    """Writes the page about some results, and its charts as SVG files.

    Args:
        paths: folders and files of results.
        page: HTML file to write.
        plots: folder for the charts that compare all results; None for no files.
        command: that makes the page again.

    Returns:
        ``page``, its size in ``bytes``, and ``plots``, the paths of the charts.

    Raises:
        UserError: a result is missing, damaged or unknown, or a place cannot be written.
    """
    sources = [read_source(path) for path in dict.fromkeys(paths)]
    overall = _speed_quality(_told_apart(sources), "")
    several = sum(bool(source.arms) for source in sources) > 1
    times = _times(sources)
    own = [_own_charts(source, several) for source in sources]
    for folder in filter(None, (page.parent, plots)):
        make_folder(folder)
    values = {
        "overall": overall,
        "times": times,
        "sections": list(zip(sources, own, strict=True)),
        "gallery": gallery(sources),
        "command": command,
        "versions": versions(),
    }
    size = write_page(page, "report.html", values)
    files = []
    for chart in [*overall, *times] if plots else ():
        assert plots is not None
        files.append(plots / f"{chart.name}.svg")
        text = charts.standalone(chart.svg).encode()
        write_atomic(files[-1], lambda file, data=text: file.write(data))
    return {"page": str(page), "bytes": size, "plots": list(map(str, files))}


def _own_charts(source: Source, several: bool) -> list[Chart]:
    """The charts of one source; its first quality only where others share the chart of all."""
    slug = re.sub(r"[^a-z0-9]+", "-", source.title.lower()).strip("-")[:40]
    found = _speed_quality(source.arms, f"{slug}-")[:2] if several else []
    for index, profile in enumerate(source.profiles):
        svg = Markup(charts.profile(profile))
        found.append(Chart(name=f"{slug}-scales-{index}", caption=profile.title, svg=svg))
    return found


def _times(sources: Sequence[Source]) -> list[Chart]:
    """The stacked times of all sources; bars of equal title and stages share a chart."""
    merged: dict[tuple[str, tuple[str, ...]], dict[str, Sequence[float]]] = {}
    for source in sources:
        for bars in source.bars:
            rows = merged.setdefault((bars.title, tuple(bars.stages)), {})
            for name, times in bars.rows.items():
                rows[name if name not in rows else f"{name} ({source.path})"] = times
    found = []
    for index, ((title, stages), rows) in enumerate(merged.items()):
        svg = Markup(charts.bars(Bars(title=title, stages=stages, rows=rows)))
        found.append(Chart(name=f"times-{index}", caption=title, svg=svg))
    return found


def _speed_quality(arms: Sequence[Arm], prefix: str) -> list[Chart]:
    """Every quality against both speed-ups, as far as the arms have them."""
    found = []
    for metric, speeds in METRICS.items():
        for speed in speeds:
            svg = charts.speed_quality(arms, speed, metric)
            if svg is not None:
                name = f"{prefix}{metric.removesuffix('_db')}-{speed}"
                caption = f"{COLUMNS[metric].title}, against {SPEEDS[speed]} than dense"
                found.append(Chart(name=name, caption=caption, svg=Markup(svg)))
    return found


def _told_apart(sources: Sequence[Source]) -> list[Arm]:
    """The arms of all sources; a series named as one of another source gets its source's title."""
    owners: dict[str, set[str]] = {}
    for source in sources:
        for arm in source.arms:
            owners.setdefault(arm.series, set()).add(source.path)
    return [
        arm
        if len(owners[arm.series]) == 1
        else replace(arm, series=f"{arm.series} ({source.title.removeprefix('Ablation: ')})")
        for source in sources
        for arm in source.arms
    ]
