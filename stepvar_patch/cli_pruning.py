"""``stepvar ablate`` and ``stepvar show-masks``: what pruning does to quality, speed and tokens."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from stepvar_patch.terminal import Json, Overrides, load_pipeline_of, say, talk


def ablate(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(help="YAML file in configs/ablations/.")],
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Compare pruned variants with the dense pictures: one table row per cell; resumable."""
    from dataclasses import asdict

    from stepvar_patch.experiments.ablate import run
    from stepvar_patch.experiments.ablate_plot import write_plots
    from stepvar_patch.experiments.ablate_report import markdown, write_report
    from stepvar_patch.experiments.ablate_schema import AblateConfig, expand
    from stepvar_patch.experiments.loading import load_config
    from stepvar_patch.progress import RunProgress

    settings = load_config(AblateConfig, config, overrides or [])
    with RunProgress(talk) as progress:
        result = run(settings, progress, load_pipeline_of(context))
    command = shlex.join(["stepvar", "ablate", str(config), *(overrides or [])])
    folder, title = Path(settings.output), config.stem
    lines = write_report(folder, title, result, command)
    write_plots(folder, expand(settings), lines, title)
    done = f"{result.made} rows in {result.seconds:.0f} s: {folder}"
    summary = {"output": str(folder), "made": result.made, "seconds": result.seconds}
    rows = [asdict(line) for line in lines]
    say({**summary, "cells": rows}, f"{markdown(lines, title, command)}\n{done}", as_json)


def show_masks(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(help="A generate config with pruning.")],
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Show, for the first prompt, which tokens every scale keeps: one PNG and one HTML page."""
    from stepvar_patch.experiments.loading import load_config
    from stepvar_patch.experiments.masks import run
    from stepvar_patch.experiments.schema import GenerateConfig

    settings = load_config(GenerateConfig, config, overrides or [])
    files = run(settings, load_pipeline_of(context))
    named = {name: str(path) for name, path in files.items()}
    say(named, "\n".join(named.values()), as_json)
