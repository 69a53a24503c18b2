"""``stepvar layout``: prompts of official benchmarks in, folders for their scorers out."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infinity.errors import UserError
from stepvar_patch.terminal import Json, say, verb

if TYPE_CHECKING:
    from stepvar_patch.experiments.benchmarks.layout import Layout

app = typer.Typer(help="Official benchmarks: geneval, dpg, mjhq, hpsv2, coco.")

Benchmark = Annotated[str, typer.Argument(help="geneval, dpg, mjhq, hpsv2 or coco.")]
Source = Annotated[Path, typer.Argument(help="The official prompt file or folder.")]


@verb(app)
def prompts(
    benchmark: Benchmark,
    source: Source,
    output: Annotated[Path, typer.Argument(help="Prompt file to write, .jsonl.")],
    as_json: Json = False,
) -> None:
    """Turn official prompts into a prompt file of stepvar generate."""
    from stepvar_patch.experiments.benchmarks.layout import write_prompts

    layout = _layout(benchmark)
    count = write_prompts(layout, source, output)
    hint = f"draw with images_per_prompt={layout.images}"
    say({"prompts": count, "output": str(output)}, f"{count} prompts: {output}; {hint}", as_json)


@verb(app)
def export(
    benchmark: Benchmark,
    source: Source,
    run: Annotated[Path, typer.Argument(help="Folder of stepvar generate on these prompts.")],
    output: Annotated[Path, typer.Argument(help="Folder for the official scorer.")],
    as_json: Json = False,
) -> None:
    """Copy a run's pictures into the layout that the official scorer reads."""
    from stepvar_patch.experiments.benchmarks.layout import export as copy

    count = copy(_layout(benchmark), source, run, output)
    say({"prompts": count, "output": str(output)}, f"{count} prompts: {output}", as_json)


@verb(app)
def check(
    benchmark: Benchmark,
    source: Source,
    folder: Annotated[Path, typer.Argument(help="Folder for the official scorer.")],
    as_json: Json = False,
) -> None:
    """Make sure that a folder is complete; name what is missing."""
    from stepvar_patch.experiments.benchmarks.layout import check_complete

    layout = _layout(benchmark)
    rows = layout.prompts(source)
    check_complete(layout, rows, folder)
    say({"prompts": len(rows)}, f"complete: {len(rows)} prompts", as_json)


@verb(app)
def geneval(
    folder: Annotated[Path, typer.Argument(help="Folder in GenEval's layout.")],
    detector: Annotated[Path, typer.Option(help="Folder of a Mask2Former, COCO instances.")],
    clip: Annotated[Path, typer.Option(help="Folder of a CLIP model.")],
    device: Annotated[str, typer.Option(help="Where networks run.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Score a GenEval folder with local networks."""
    import os

    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    from infinity.loading import resolve_device
    from stepvar_patch.experiments.benchmarks.geneval_detect import ColourJudge, Detector
    from stepvar_patch.experiments.benchmarks.geneval_score import score_folder
    from stepvar_patch.experiments.metrics.clip import Clip

    resolve_device(device)
    colours = ColourJudge(Clip.load(clip, device))
    score = score_folder(folder, Detector(detector, device), colours, device)
    lines = [f"{tag}: {share:.4f}" for tag, share in score.tasks.items()]
    lines.append(f"overall: {score.overall:.4f} [{score.low:.4f}, {score.high:.4f}]")
    say(asdict(score), "\n".join(lines), as_json)


def _layout(name: str) -> "Layout":
    from stepvar_patch.experiments.benchmarks import LAYOUTS

    if name not in LAYOUTS:
        raise UserError(f"benchmark {name!r} is unknown; valid are {', '.join(LAYOUTS)}")
    return LAYOUTS[name]
