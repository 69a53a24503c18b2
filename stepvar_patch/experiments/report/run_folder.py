"""The folder of ``stepvar generate``: its pictures, its masks, and where the time went."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from infinity.errors import UserError
from infinity.io.earlier import CONFIG
from infinity.io.images import Provenance, read_png
from infinity.io.manifest import read_rows
from infinity.io.rows import ImageRow
from stepvar_patch.experiments.report.files import read_text
from stepvar_patch.experiments.report.model import Bars, Shot, Source

_CONFIG_CHARACTERS = 20_000
_LONGEST_MS = 1e12


def read_run(folder: Path) -> Source:
    """What a run folder has to show.

    Raises:
        UserError: it has no finished image, or its config cannot be read.
    """
    rows = read_rows(folder)
    if not rows:
        raise UserError(f"{folder} holds no finished image; run stepvar generate to the end first")
    made = read_png(folder / rows[0].file)[1]
    stages = list(rows[0].ms)
    times = [median(_ms(row, stage) for row in rows) for stage in stages]
    config = folder / CONFIG
    return Source(
        title=f"Run: {folder.resolve().name}",
        path=str(folder),
        summary=f"{len(rows)} images by {made.model['name']}, {_policy(made)}.",
        environment={
            **made.versions,
            "device": str(made.settings.get("device")),
            "dtype": str(made.settings.get("dtype")),
            "weights": rows[0].weights,
        },
        config=read_text(config)[:_CONFIG_CHARACTERS] if config.is_file() else "",
        bars=(
            Bars(
                title="milliseconds per image, median of the run",
                stages=stages,
                rows={folder.resolve().name: times},
            ),
        ),
        shots=shots_of(folder, rows),
    )


def _policy(made: Provenance) -> str:
    pruning: Any = made.settings.get("pruning")
    kind = pruning.get("kind") if isinstance(pruning, dict) else None
    return "dense" if kind is None else f"pruned by {kind}"


def _ms(row: ImageRow, stage: str) -> float:
    """The time of a stage; 0 where the manifest, which is not trusted, holds something else."""
    value: Any = row.ms.get(stage)
    measured = isinstance(value, float | int) and 0 <= value < _LONGEST_MS
    return float(value) if measured else 0.0


def shots_of(folder: Path, rows: Sequence[ImageRow]) -> list[Shot]:
    """The pictures of a run folder with their mask strips."""
    shots = []
    for row in rows:
        masks = folder / f"{row.file.removesuffix('.png')}.masks.png"
        shots.append(
            Shot(
                key=(row.prompt, row.id, row.seed),
                run=folder.resolve().name,
                picture=folder / row.file,
                masks=masks if masks.is_file() else None,
            )
        )
    return shots
