"""A table's columns of official benchmarks: drawn, exported, and scored where that can be done."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stepvar_patch.experiments.benchmarks import LAYOUTS
from stepvar_patch.experiments.benchmarks.layout import Layout, export, write_prompts
from stepvar_patch.experiments.estimate import Estimate
from stepvar_patch.experiments.evaluate.arms import Arm, draw_arms, plain_config
from stepvar_patch.experiments.evaluate.scoring import Scoring
from stepvar_patch.experiments.generate import Progress
from stepvar_patch.experiments.table.schema import TableConfig


def benchmark_estimates(
    table: TableConfig,
    arms: Sequence[Arm],
    scoring: Scoring,
    progress: Progress,
    load_pipeline: Callable[..., Any],
) -> dict[str, dict[str, Estimate]]:
    """Per arm, the columns GenEval and DPG of a table that has them.

    Args:
        table: the config.
        arms: of the table.
        scoring: files and device.
        progress: told of every finished batch.
        load_pipeline: reads the model.

    Raises:
        UserError: an official file is not what it should be.
    """
    found: dict[str, dict[str, Estimate]] = {arm.label: {} for arm in arms}
    for name, path in (("geneval", table.benchmarks.geneval), ("dpg", table.benchmarks.dpg)):
        if name not in table.chosen.columns:
            continue
        if not Path(path).exists():
            absent = Estimate.absent(f"benchmarks.{name} ({path})")
            for arm in arms:
                found[arm.label][name] = absent
            continue
        layout = LAYOUTS[name]
        places = _draw(layout, Path(path), table, arms, progress, load_pipeline)
        score = _geneval(places, scoring) if name == "geneval" else _exported(places)
        for label, estimate in score.items():
            found[label][name] = estimate
    return found


def _draw(
    layout: Layout,
    source: Path,
    table: TableConfig,
    arms: Sequence[Arm],
    progress: Progress,
    load_pipeline: Callable[..., Any],
) -> dict[str, Path]:
    prompts = table.folder / f"{layout.name}.jsonl"
    write_prompts(layout, source, prompts)
    runs = [
        Arm(
            label=arm.label,
            config=plain_config(
                arm.config,
                prompts=str(prompts),
                images_per_prompt=layout.images,
                output=str(arm.folder.with_name(f"{arm.folder.name}-{layout.name}")),
            ),
        )
        for arm in arms
    ]
    places = {}
    for drawn in draw_arms(runs, None, progress, load_pipeline):
        places[drawn.label] = drawn.folder / layout.name
        export(layout, source, drawn.folder, places[drawn.label])
    return places


def _geneval(places: dict[str, Path], scoring: Scoring) -> dict[str, Estimate]:
    if lacking := scoring.files.missing("detector", "clip"):
        return dict.fromkeys(places, Estimate.absent(lacking))
    from stepvar_patch.experiments.benchmarks.geneval_detect import ColourJudge, Detector
    from stepvar_patch.experiments.benchmarks.geneval_score import score_folder
    from stepvar_patch.experiments.metrics.clip import Clip

    detect = Detector(scoring.files.detector, scoring.device)
    colours = ColourJudge(Clip.load(scoring.files.clip, scoring.device))
    found = {}
    for label, folder in places.items():
        score = score_folder(folder, detect, colours, scoring.device)
        found[label] = Estimate(value=score.overall, low=score.low, high=score.high, n=score.images)
    return found


def _exported(places: dict[str, Path]) -> dict[str, Estimate]:
    return {
        label: Estimate.absent(
            f"the official DPG scorer's result for {folder} (docs/evaluation.md)"
        )
        for label, folder in places.items()
    }
