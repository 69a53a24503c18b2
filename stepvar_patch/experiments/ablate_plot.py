"""The plots of an ablation: quality against speed, and where the bits part."""

import io
import logging
from collections.abc import Sequence
from pathlib import Path

from infinity.io.files import write_atomic
from stepvar_patch.experiments.ablate_report import Line
from stepvar_patch.experiments.ablate_schema import Cell

logger = logging.getLogger(__name__)


def write_plots(folder: Path, cells: Sequence[Cell], lines: Sequence[Line], title: str) -> bool:
    """Writes ``plot.png`` and ``plot.svg`` if matplotlib is there, and says whether it is.

    Left: PSNR against the saving in counted operations (in time where nothing was counted), the
    points of one series joined along the grid. Right: bit agreement per scale.

    Args:
        folder: exists.
        cells: of the ablation.
        lines: of the table, in the order of ``cells``.
        title: of the figure.

    Raises:
        UserError: a file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("no plots: matplotlib is not installed (pip install 'stepvar[plots]')")
        return False
    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    counted = all(line.flop_ratio is not None for line in lines)
    ratios = [line.flop_ratio if counted else line.time_ratio for line in lines]
    series: dict[str, list[tuple[float, Line]]] = {}
    for cell, line, ratio in zip(cells, lines, ratios, strict=True):
        name = cell.series if cell.series or not cell.point else "grid"
        series.setdefault(name, []).append((1 / ratio if ratio else float("nan"), line))
    gridded = any(cell.point for cell in cells)
    for name, points in series.items():
        xs, ys = [x for x, _ in points], [line.psnr_db for _, line in points]
        left.plot(xs, ys, marker="o", label=name)
        for x, line in points:
            text = line.cell.removeprefix(name).strip()
            if gridded and text:
                left.annotate(text, (x, line.psnr_db), fontsize=6)
    left.set_xlabel("dense FLOPs / FLOPs" if counted else "dense time / time")
    left.set_ylabel("PSNR against dense, dB")
    for line in lines:
        shares = [float("nan") if share is None else share for share in line.bit_agreement]
        right.plot(range(len(shares)), shares, marker=".", label=line.cell)
    right.set_xlabel("scale")
    right.set_ylabel("share of bits equal to dense")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=6)
    figure.suptitle(title)
    for kind in ("png", "svg"):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=150)
        write_atomic(folder / f"plot.{kind}", lambda file, data=buffer: file.write(data.getvalue()))
    return True
