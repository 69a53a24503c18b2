"""The plots of an ablation: quality against speed, and where the bits part."""

import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infinity.io.files import write_atomic
from stepvar_patch.experiments.ablate.report import Line
from stepvar_patch.experiments.ablate.schema import Cell

logger = logging.getLogger(__name__)

_READABLE = 20
"""With more cells than this the points have no labels, and the bits no panel."""


def write_plots(folder: Path, cells: Sequence[Cell], lines: Sequence[Line], title: str) -> bool:
    """Writes ``plot.png`` and ``plot.svg`` if matplotlib is there, and says whether it is.

    Left: PSNR against the saving in counted operations (in time where nothing was counted), the
    points of one series joined along the grid. Right, unless there are many cells: bit agreement
    per scale.

    Args:
        folder: exists.
        cells: of the ablation.
        lines: of the table, in the order of ``cells``.
        title: of the figure.

    Raises:
        UserError: a file cannot be written.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("no plots: matplotlib is not installed (pip install 'stepvar[plots]')")
        return False
    with rc_context({"svg.fonttype": "none", "text.parse_math": False}):  # text as text
        pictures = _drawn(Figure, cells, lines, title)
    for kind, data in pictures.items():
        write_atomic(folder / f"plot.{kind}", lambda file, data=data: file.write(data))
    return True


def _drawn(
    new_figure: Any, cells: Sequence[Cell], lines: Sequence[Line], title: str
) -> dict[str, bytes]:
    few = len(lines) <= _READABLE
    figure = new_figure(figsize=(12 if few else 7, 5), layout="constrained")
    panels = figure.subplots(1, 2 if few else 1, squeeze=False)[0]
    counted = all(line.flop_ratio is not None for line in lines)
    ratios = [line.flop_ratio if counted else line.time_ratio for line in lines]
    series: dict[str, list[tuple[float, Line]]] = {}
    for cell, line, ratio in zip(cells, lines, ratios, strict=True):
        name = cell.series if cell.series or not cell.point else "grid"
        series.setdefault(name, []).append((1 / ratio if ratio else float("nan"), line))
    gridded = any(cell.point for cell in cells)
    for name, points in series.items():
        xs, ys = [x for x, _ in points], [line.psnr_db for _, line in points]
        panels[0].plot(xs, ys, marker="o", markersize=4, label=name)
        for x, line in points:
            text = line.cell.removeprefix(name).strip()
            if gridded and few and text:
                panels[0].annotate(text, (x, line.psnr_db), fontsize=6)
    panels[0].set_xlabel("dense FLOPs / FLOPs" if counted else "dense time / time")
    panels[0].set_ylabel("PSNR against dense, dB")
    if few:
        for line in lines:
            shares = [float("nan") if share is None else share for share in line.bit_agreement]
            panels[1].plot(range(len(shares)), shares, marker=".", label=line.cell)
        panels[1].set_xlabel("scale")
        panels[1].set_ylabel("share of bits equal to dense")
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.legend(fontsize=6)
    figure.suptitle(title)
    found = {}
    for kind in ("png", "svg"):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=150)
        found[kind] = buffer.getvalue()
    return found
