"""``stepvar eval`` and ``stepvar table``: how good pruned pictures are, and what they cost."""

import logging
import shlex
from pathlib import Path
from typing import Annotated

import typer

from stepvar_patch.terminal import (
    Json,
    Overrides,
    configure_logging,
    load_pipeline_of,
    say,
    talk,
)


def evaluate(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(help="YAML file, e.g. configs/eval.yaml.")],
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Score a run against its dense original with every metric whose files are there; resumable."""
    from stepvar_patch.experiments.evaluate.run import run, text
    from stepvar_patch.experiments.evaluate.schema import EvalConfig
    from stepvar_patch.experiments.loading import load_config
    from stepvar_patch.progress import RunProgress

    settings = load_config(EvalConfig, config, overrides or [])
    command = shlex.join(["stepvar", "eval", str(config), *(overrides or [])])
    with RunProgress(talk) as progress:
        result = run(settings, progress, load_pipeline_of(context), command)
    say(result.to_json(), text(result.runs, command), as_json)


def table(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(help="YAML file in configs/tables/.")],
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Make one of the paper's tables: arms drawn by turns and scored; resumable."""
    from stepvar_patch.experiments.loading import load_config
    from stepvar_patch.experiments.table import run as tables
    from stepvar_patch.experiments.table.report import write_table
    from stepvar_patch.experiments.table.schema import TableConfig, load_published
    from stepvar_patch.progress import RunProgress

    configure_logging(logging.INFO)
    settings = load_config(TableConfig, config, overrides or [])
    published = load_published(settings.published)
    command = shlex.join(["stepvar", "table", str(config), *(overrides or [])])
    title, text = f"{config.stem}, {settings.model}", ""
    with RunProgress(talk) as progress:
        for result in tables.run(settings, progress, load_pipeline_of(context)):
            text = write_table(settings.folder, title, result, published, command)
    summary = {"output": str(settings.folder), "rows": tables.as_json(result.rows)}
    say(summary, f"{text}\n{settings.folder}", as_json)
