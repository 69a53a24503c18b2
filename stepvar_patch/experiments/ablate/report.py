"""The rows of an ablation as one line per cell: CSV, JSON, Markdown and LaTeX."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median, quantiles, stdev
from typing import Any

from infinity.io.files import write_atomic
from stepvar_patch.experiments.ablate.rows import Row
from stepvar_patch.experiments.ablate.run import AblationRows
from stepvar_patch.experiments.tabulate import latex_table, markdown_table, rows_json, six_digits

LAST_SCALES = 4
"""The printed tables show the bit agreement of this many last scales; CSV and JSON have all."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One cell, over its images.

    Attributes:
        cell: label.
        images: how many.
        psnr_db: mean against dense; identical pictures count as 100.
        psnr_se_db: its standard error over the images; None for one image.
        ssim: mean against dense.
        bit_agreement: mean share of equal bits per scale; None where a picture drew none.
        first_divergence: earliest scale with a different bit in any picture; None if there is none.
        ms: median of the scale loop's time; None where none was taken.
        time_ratio: median over images of time / dense time.
        time_ratio_iqr: distance of its quartiles; None for fewer than two times.
        flop_ratio: counted operations / dense operations, or those of the plan where none were
            counted; None where the policy decides as it draws, and none were.
    """

    cell: str
    images: int
    psnr_db: float
    psnr_se_db: float | None
    ssim: float
    bit_agreement: tuple[float | None, ...]
    first_divergence: int | None
    ms: float | None
    time_ratio: float | None
    time_ratio_iqr: float | None
    flop_ratio: float | None


def summarise(cell: str, rows: Sequence[Row], planned: float | None) -> Line:
    """The line of a cell that has at least one row; ``planned`` is the plan's FLOP ratio."""
    timed = [(row.ms, row.dense_ms) for row in rows if row.ms and row.dense_ms]
    ratios = [ms / dense_ms for ms, dense_ms in timed]
    quartiles = quantiles(ratios, n=4) if len(ratios) > 1 else None
    counted = [(row.flops, row.dense_flops) for row in rows if row.flops and row.dense_flops]
    diverged = [row.first_divergence for row in rows if row.first_divergence is not None]
    return Line(
        cell=cell,
        images=len(rows),
        psnr_db=fmean(row.psnr_db for row in rows),
        psnr_se_db=stdev(row.psnr_db for row in rows) / len(rows) ** 0.5 if rows[1:] else None,
        ssim=fmean(row.ssim for row in rows),
        bit_agreement=tuple(map(_mean, zip(*(row.bit_agreement for row in rows), strict=True))),
        first_divergence=min(diverged, default=None),
        ms=median(ms for ms, _ in timed) if timed else None,
        time_ratio=median(ratios) if ratios else None,
        time_ratio_iqr=quartiles[2] - quartiles[0] if quartiles else None,
        flop_ratio=sum(f for f, _ in counted) / sum(d for _, d in counted) if counted else planned,
    )


def write_report(folder: Path, title: str, result: AblationRows, command: str) -> list[Line]:
    """Writes ``table.{csv,json,md,tex}`` and gives the lines.

    Args:
        folder: exists.
        title: of the tables.
        result: as many rows for every cell.
        command: that makes these files again.

    Raises:
        UserError: a file cannot be written.
    """
    lines = [summarise(cell, rows, result.planned[cell]) for cell, rows in result.cells.items()]
    record = {
        "title": title,
        "command": command,
        "environment": result.environment,
        "cells": [six_digits(asdict(line)) for line in lines],
    }
    texts = {
        "table.csv": _csv(lines),
        "table.json": rows_json(record),
        "table.md": markdown(lines, title, command),
        "table.tex": latex(lines, title),
    }
    for name, text in texts.items():
        _write(folder / name, text)
    return lines


def markdown(lines: Sequence[Line], title: str, command: str) -> str:
    """The table for a README, with the command that makes it."""
    table = markdown_table(as_cells(lines))
    return f"**{title}**, {lines[0].images} images per row: `{command}`\n\n{table}"


def latex(lines: Sequence[Line], title: str) -> str:
    """The table as a LaTeX ``tabular`` that needs no package."""
    return latex_table(as_cells(lines), title)


def as_cells(lines: Sequence[Line]) -> list[list[str]]:
    """The printed table: the head, then one row of texts per line."""
    scales = len(lines[0].bit_agreement)
    shown = range(max(0, scales - LAST_SCALES), scales)
    head = ["cell", "FLOPs", "time", "PSNR dB", "SSIM", *(f"bits @{si - scales}" for si in shown)]
    body = [
        [
            line.cell,
            _speed(line.flop_ratio),
            _speed(line.time_ratio),
            f"{line.psnr_db:.2f}" + (f" ± {line.psnr_se_db:.2f}" if line.psnr_se_db else ""),
            f"{line.ssim:.4f}",
            *(_share(line.bit_agreement[si]) for si in shown),
        ]
        for line in lines
    ]
    return [head, *body]


def _speed(ratio: float | None) -> str:
    return "–" if ratio is None else f"{1 / ratio:.2f}×"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _csv(lines: Sequence[Line]) -> str:
    out = io.StringIO()
    scales = len(lines[0].bit_agreement)
    names = [name for name in asdict(lines[0]) if name != "bit_agreement"]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*names, *(f"bit_agreement_{si}" for si in range(scales))])
    for line in lines:
        values: dict[str, Any] = asdict(line)
        writer.writerow([*(values[name] for name in names), *line.bit_agreement])
    return out.getvalue()


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def _write(path: Path, text: str) -> None:
    write_atomic(path, lambda file: file.write(text.encode()))
