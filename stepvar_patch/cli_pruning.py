"""``stepvar ablate``, ``show-masks``, ``fit-skipvar``: what pruning does, and one rival's fit."""

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

    from stepvar_patch.experiments.ablate.plot import write_plots
    from stepvar_patch.experiments.ablate.report import markdown, write_report
    from stepvar_patch.experiments.ablate.run import run
    from stepvar_patch.experiments.ablate.schema import AblateConfig, expand
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
    from stepvar_patch.experiments.masks.run import run
    from stepvar_patch.experiments.schema import GenerateConfig

    settings = load_config(GenerateConfig, config, overrides or [])
    files = run(settings, load_pipeline_of(context))
    named = {name: str(path) for name, path in files.items()}
    say(named, "\n".join(named.values()), as_json)


def fit_skipvar(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(help="A generate config without pruning.")],
    overrides: Overrides = None,
    ssim: Annotated[
        float, typer.Option(min=0, max=1, help="Lowest SSIM to the full picture.")
    ] = 0.88,
    images: Annotated[int, typer.Option(min=1, help="The first prompts of the file.")] = 24,
    after_scale: Annotated[
        int, typer.Option(max=-2, help="Decide after this scale, counted from the end.")
    ] = -4,
    preview_share: Annotated[
        float, typer.Option(min=0.0001, max=1, help="Size of the early pictures, in tokens.")
    ] = 1 / 64,
    output: Annotated[Path, typer.Option(help="The pruning file to write.")] = Path("skipvar.yaml"),
    as_json: Json = False,
) -> None:
    """Fit SkipVAR's decision on a model's own runs; the file serves as pruning=FILE."""
    from dataclasses import asdict

    from stepvar_patch.experiments.fit_skipvar import run
    from stepvar_patch.experiments.loading import load_config
    from stepvar_patch.experiments.schema import GenerateConfig
    from stepvar_patch.progress import RunProgress

    settings = load_config(GenerateConfig, config, overrides or [])
    with RunProgress(talk, "prompts") as progress:
        fitted = run(
            settings,
            ssim,
            images,
            output,
            progress,
            load_pipeline_of(context),
            after_scale=after_scale,
            preview_share=preview_share,
        )
    told = (
        f"{fitted.runs} prompts; the last 0, 1, 2 … scales may be left out in "
        f"{', '.join(map(str, fitted.drop_labels))} of them, run without unconditional rows in "
        f"{', '.join(map(str, fitted.rows_labels))}: {fitted.file}"
    )
    say(asdict(fitted), told, as_json)
