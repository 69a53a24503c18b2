"""``stepvar bench``: latency and memory of arms side by side, attention backends, precisions."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from stepvar_patch.terminal import Json, Overrides, load_pipeline_of, say, talk, verb


class _DefaultVerb(typer.core.TyperGroup):
    """``bench CONFIG`` is ``bench run CONFIG``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_DefaultVerb,
    help="Time and memory of policies side by side or of attention backends; errors of precisions.",
    no_args_is_help=True,
)


@verb(app)
def run(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(help="YAML file in configs/bench/.")],
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Time arms side by side, interleaved in one process; `run` may be left out."""
    from stepvar_patch.experiments.bench.schema import BenchConfig
    from stepvar_patch.experiments.loading import load_config

    settings = load_config(BenchConfig, config, overrides or [])
    from stepvar_patch.experiments.bench.report import markdown
    from stepvar_patch.experiments.bench.run import run as measure
    from stepvar_patch.progress import RunProgress

    command = shlex.join(["stepvar", "bench", str(config), *(overrides or [])])
    with RunProgress(talk, unit="draws") as progress:
        record = measure(settings, progress, load_pipeline_of(context), command)
    say(record, f"{markdown(record)}\n{settings.output}", as_json)


@verb(app)
def attention(
    config: Annotated[
        Path | None,
        typer.Argument(help="Like configs/bench/attention.yaml; default: 2B, every scale."),
    ] = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Time every attention backend on a model's shapes, against an fp32 reference."""
    from stepvar_patch.experiments.bench.attention_cases import AttentionConfig
    from stepvar_patch.experiments.loading import load_config

    settings = AttentionConfig()
    if config is not None:
        settings = load_config(AttentionConfig, config, overrides or [])
    from stepvar_patch.experiments.bench.attention import run_attention
    from stepvar_patch.experiments.bench.attention_report import markdown
    from stepvar_patch.progress import RunProgress

    words = [str(config)] if config is not None else []
    command = shlex.join(["stepvar", "bench", "attention", *words, *(overrides or [])])
    with RunProgress(talk, unit="cases") as progress:
        record = run_attention(settings, progress, command)
    say(record, f"{markdown(record)}\n{settings.output}", as_json)


@verb(app)
def precision(
    config: Annotated[Path, typer.Argument(help="Like configs/bench/precision.yaml.")],
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Compare what bf16 and fp8 draw with what fp32 draws: logits, bits and pictures."""
    from stepvar_patch.experiments.bench.precision_schema import PrecisionConfig
    from stepvar_patch.experiments.loading import load_config

    settings = load_config(PrecisionConfig, config, overrides or [])
    from infinity.pipeline import InfinityPipeline
    from stepvar_patch.experiments.bench.precision import markdown, run_precision
    from stepvar_patch.progress import RunProgress

    command = shlex.join(["stepvar", "bench", "precision", str(config), *(overrides or [])])
    with RunProgress(talk, unit="pictures") as progress:
        record = run_precision(settings, progress, InfinityPipeline.from_pretrained, command)
    say(record, f"{markdown(record)}\n{settings.output}", as_json)
