"""Results of ``stepvar ablate``: ``table.json``."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infinity.errors import UserError
from stepvar_patch.experiments.ablate.report import Line, as_cells
from stepvar_patch.experiments.metrics.psnr import CAP_DB
from stepvar_patch.experiments.report.files import fit
from stepvar_patch.experiments.report.model import Arm, Profile, Quality, Source, Table, series_of


@dataclass(frozen=True, kw_only=True)
class _File:
    title: str
    command: str
    cells: tuple[Line, ...]
    environment: dict[str, str | int | bool | None] = field(default_factory=dict)


def is_ablation(value: dict[str, Any]) -> bool:
    """Whether a JSON object is the table of an ablation."""
    return "cells" in value and "command" in value


def read_ablation(path: Path, value: dict[str, Any]) -> Source:
    """What an ablation has to show.

    Raises:
        UserError: a field is missing or of the wrong kind, or there are no cells.
    """
    file = fit(_File, value, path)
    if not file.cells:
        raise UserError(f"{path}: cells is empty; an ablation has at least one")
    ratios = [r for line in file.cells for r in (line.flop_ratio, line.time_ratio)]
    if any(ratio is not None and ratio <= 0 for ratio in ratios):
        raise UserError(f"{path}: cells: flop_ratio and time_ratio must be above 0")
    if len({len(line.bit_agreement) for line in file.cells}) > 1:
        raise UserError(f"{path}: cells: bit_agreement must have as many scales in every cell")
    head, *rows = as_cells(file.cells)
    bits = {line.cell: line.bit_agreement for line in file.cells}
    return Source(
        title=f"Ablation: {file.title}",
        path=str(path),
        summary=f"{len(file.cells)} variants against the dense pictures of the same seeds, "
        f"{file.cells[0].images} images each.",
        commands=(file.command,),
        environment={name: str(value) for name, value in file.environment.items()},
        arms=tuple(map(_arm, file.cells)),
        profiles=(Profile(title="share of bits equal to dense", lines=bits),),
        tables=(Table(title="", head=head, rows=rows),),
    )


def _arm(line: Line) -> Arm:
    """A cell as a point; where every picture is dense's, a PSNR that is a cap has no place."""
    series, point = series_of(line.cell)
    ratios = {"flops": line.flop_ratio, "loop": line.time_ratio}
    error = line.psnr_se_db or 0.0
    quality = {"ssim": Quality(value=line.ssim)}
    if line.psnr_db < CAP_DB:
        low, high = line.psnr_db - error, line.psnr_db + error
        quality["psnr_db"] = Quality(value=line.psnr_db, low=low, high=high)
    return Arm(
        label=line.cell,
        series=series,
        point=point,
        speeds={name: 1 / ratio for name, ratio in ratios.items() if ratio},
        quality=quality,
    )
