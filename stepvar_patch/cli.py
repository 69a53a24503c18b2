"""The ``stepvar`` command. Verbs parse words and show results; the work is done elsewhere.

Exit codes: 0 done, 2 the user's mistake (one sentence on stderr), 130 interrupted, 1 our bug, and
1 from ``replay`` when the pixels differ. Results go to stdout, everything else to stderr.
"""

import errno
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from infinity.errors import Mistakes, UserError
from stepvar_patch import cli_bench, cli_eval, cli_layout, cli_pruning, cli_report, cli_train
from stepvar_patch.terminal import (
    Interrupted,
    Json,
    Misused,
    Overrides,
    configure_logging,
    how_misused,
    load_pipeline_of,
    printable,
    say,
    speaker,
    talk,
    verb,
)

_OF_THE_SYSTEM = frozenset(
    [
        *(errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR),
        *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE),
    ]
)
"""What a named file may meet wherever it is touched; no bug of ours."""

Dtype = Literal["float32", "bfloat16"]
app = typer.Typer(
    name="stepvar",
    help="Draws images with Infinity: dense, or pruned with StepVAR and its rivals.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(cli_train.app, name="train")
app.add_typer(cli_layout.app, name="layout")
app.add_typer(cli_bench.app, name="bench")


@verb(app)
def generate(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(help="YAML file, e.g. configs/generate.yaml.")],
    overrides: Overrides = None,
    preview: Annotated[
        bool, typer.Option("--preview", help="Also the image after each scale; preview=true.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Draw the prompts of a file. Run it again to resume an interrupted run."""
    from infinity.io.ranks import ranks_from_environment
    from stepvar_patch.experiments.check import load_run
    from stepvar_patch.experiments.generate import run
    from stepvar_patch.progress import RunProgress

    words = [*(overrides or []), *(["preview=true"] if preview else [])]
    settings, checked = load_run(config, words, drawing=True)
    load, ranks = load_pipeline_of(context), ranks_from_environment()
    with RunProgress(talk) as progress:
        summary = run(settings, progress, load, ranks, checked)
    if ranks.rank:
        return
    found = f", {summary.resumed} were finished before" if summary.resumed else ""
    text = f"{summary.images} images in {summary.seconds:.1f} s{found}: {summary.output}"
    say(asdict(summary), text, as_json)


@verb(app)
def show(
    image: Annotated[Path, typer.Argument(help="PNG made by stepvar.")], as_json: Json = False
) -> None:
    """Print what an image was made from."""
    import yaml

    from infinity.io.images import read_png

    provenance = read_png(image)[1].to_json()
    text = yaml.safe_dump(provenance, sort_keys=False, allow_unicode=True, width=100)
    say(provenance, text.rstrip(), as_json)


@verb(app)
def replay(
    context: typer.Context,
    image: Annotated[Path, typer.Argument(help="PNG made by stepvar.")],
    output: Annotated[Path | None, typer.Option(help="Where to write the new image.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Model, if not the one the image names.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Tokenizer file of an official transformer.")
    ] = None,
    text_encoder: Annotated[
        str | None, typer.Option(help="Text encoder folder, if not the one the image names.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")] = None,
    as_json: Json = False,
) -> None:
    """Draw an image again and compare the pixels (exit code 1 when they differ)."""
    from stepvar_patch.experiments.replay import replay as draw_again

    load = load_pipeline_of(context)
    result = draw_again(
        image,
        load,
        model=model,
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        device=device,
        output=output,
    )
    if result.identical:
        text = f"{image}: identical pixels"
    elif result.differing_pixels < 0:
        text = f"{image}: another size"
    else:
        text = (
            f"{image}: {result.differing_pixels} pixels differ, "
            f"by at most {result.largest_difference} of 255"
        )
    for name, change in result.changed.items():
        talk.print(f"{name}: {change}", highlight=False)
    say(asdict(result), text, as_json)
    if not result.identical:
        raise typer.Exit(1)


@verb(app)
def convert(
    transformer: Annotated[
        Path, typer.Argument(help="Official .pth or .safetensors, or a folder of shards.")
    ],
    tokenizer: Annotated[Path, typer.Argument(help="Official tokenizer .pth or .safetensors.")],
    output: Annotated[Path, typer.Option(help="The new model directory.")],
    name: Annotated[
        str | None, typer.Option(help="Which released model it must be, e.g. infinity-8b-512.")
    ] = None,
    text_encoder: Annotated[
        Path | None, typer.Option(help="Folder of google/flan-t5-xl, to be included.")
    ] = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Of the large matrices; default: as stored.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Turn official files into one model directory."""
    import torch

    from infinity.checkpoint.convert import convert as make

    precision = getattr(torch, dtype) if dtype else None
    config = make(
        transformer, tokenizer, output, name=name, text_encoder=text_encoder, dtype=precision
    )
    say(asdict(config), f"{config.name}: {output}", as_json)


@verb(app)
def doctor(
    config: Annotated[Path | None, typer.Argument(help="A generate config to check.")] = None,
    overrides: Overrides = None,
    shape: Annotated[
        str | None,
        typer.Option(help="Preset that stands in for the model's files, e.g. infinity-2b."),
    ] = None,
    card_gib: Annotated[
        float | None, typer.Option(help="Memory of a card that is not here, in GiB.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print what this machine offers; check a config and tell its cost without reading weights."""
    from infinity.config import PRESETS
    from stepvar_patch.doctor import card_bytes, environment

    found: list[str] = []
    if config is None and (shape is not None or card_gib is not None):
        found.append("--shape and --card-gib need a config, e.g. configs/generate.yaml")
    if card_gib is not None and not 0 < card_gib <= 65_536:
        found.append(f"--card-gib {card_gib} must be above 0 and at most 65536")
    if shape is not None and shape not in PRESETS:
        found.append(f"--shape {shape} is unknown; allowed: {', '.join(PRESETS)}")
    if found:
        raise Mistakes(found)
    report: dict[str, Any] = dict(environment())
    plan = ""
    if config is not None:
        from stepvar_patch.experiments.check import load_run
        from stepvar_patch.experiments.dry_run import as_text, dry_run
        from stepvar_patch.experiments.sparing import advise

        settings, checked = load_run(config, overrides or [], PRESETS[shape] if shape else None)
        report["config"] = f"{config}: valid, {checked.images} images"
        cost = dry_run(settings, checked.model, checked.device_type)
        total = card_bytes(checked.device) if card_gib is None else int(card_gib * 2**30)
        if card_gib is not None and checked.device == "cpu":
            checked = replace(checked, device="cuda", dtype=settings.dtype or "bfloat16")
        needs = advise(settings, checked, total)
        report["memory"] = needs["advice"]
        plan = f"\n\n{as_text(cost)}"
    width = max(map(len, report))
    text = "\n".join(f"{key:{width}}  {value}" for key, value in report.items())
    if plan:
        report["plan"] = cost.to_json()
        report["memory"] = needs
    say(report, text + plan, as_json)


verb(app)(cli_pruning.ablate)
verb(app)(cli_pruning.show_masks)
verb(app, "fit-skipvar")(cli_pruning.fit_skipvar)
verb(app)(cli_report.report)
verb(app, "eval")(cli_eval.evaluate)
verb(app)(cli_eval.table)


def main(
    arguments: Sequence[str] | None = None, load_pipeline: Callable[..., Any] | None = None
) -> int:
    """The exit code of one ``stepvar`` call.

    Args:
        arguments: words after ``stepvar``; default: those of the process.
        load_pipeline: stands in for ``InfinityPipeline.from_pretrained``.

    Returns:
        0, 1, 2 or 130.
    """
    configure_logging()
    try:
        code = app(args=arguments, obj=load_pipeline, prog_name="stepvar", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except Misused as error:
        sys.stderr.write(how_misused(error))
        return 2
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(bool(stop.code))
    except UserError as error:
        sys.stderr.write(f"stepvar: {speaker()}{printable(str(error))}\n")
        return 2
    except (Interrupted, KeyboardInterrupt):
        sys.stderr.write("stepvar: interrupted; the same command goes on where this one stopped\n")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.filename is None or error.errno not in _OF_THE_SYSTEM:
            traceback.print_exc()
            return 1
        sys.stderr.write(
            f"stepvar: {speaker()}{printable(f'{error.filename}: {error.strerror}')}\n"
        )
        return 2
    except Exception:
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    sys.exit(main())
