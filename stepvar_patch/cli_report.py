"""``stepvar report``: any mix of results as one page."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from stepvar_patch.terminal import Json, say


def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of ablate and generate, and JSON results.")
    ],
    output: Annotated[Path, typer.Option(help="The HTML page.")] = Path("outputs/report.html"),
    plots: Annotated[
        Path | None, typer.Option(help="Folder for the comparing charts as SVG files, too.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show results as one static HTML page: curves, tables, times, pictures."""
    from stepvar_patch.experiments.report.write import write_report

    words = ["stepvar", "report", *map(str, runs), "--output", str(output)]
    words += ["--plots", str(plots)] if plots else []
    made = write_report(runs, output, plots, shlex.join(words))
    text = "\n".join([f"{made['page']}, {made['bytes'] / 2**20:.1f} MiB", *made["plots"]])
    say(made, text, as_json)
