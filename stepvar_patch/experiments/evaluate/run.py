"""``stepvar eval``: one pruned run against its dense original, as files and as text."""

import csv
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from infinity.errors import UserError
from infinity.io.files import make_folder, write_atomic
from infinity.io.manifest import read_rows
from stepvar_patch.experiments.check import check
from stepvar_patch.experiments.estimate import Estimate
from stepvar_patch.experiments.evaluate.arms import DENSE, Arm, DrawnArm, draw_arms, plain_config
from stepvar_patch.experiments.evaluate.schema import EvalConfig
from stepvar_patch.experiments.evaluate.scoring import Scoring, evaluate
from stepvar_patch.experiments.generate import Progress
from stepvar_patch.experiments.maker import versions
from stepvar_patch.experiments.plan import resolve_device
from stepvar_patch.experiments.scorers.embedded import calibration
from stepvar_patch.experiments.scorers.timing import flop_estimate

PRUNED = "pruned"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Metrics by run, the judge's own accuracy on real drawings included where it can be had."""

    output: str
    runs: dict[str, dict[str, Estimate]]

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def run(
    config: EvalConfig, progress: Progress, load_pipeline: Callable[..., Any], command: str
) -> Evaluation:
    """Draws what is missing, scores it, and writes ``eval.{json,csv,md}``.

    Args:
        config: of the evaluation.
        progress: told of every finished batch.
        load_pipeline: reads the model.
        command: that makes these files again.

    Raises:
        UserError: a mistake in the config, or in a file that a metric needs.
    """
    output = Path(config.output)
    device, _ = resolve_device(config.device, config.dtype)
    make_folder(output)
    scoring = Scoring(files=config.files, protocol=config.fid_protocol, device=device, cache=output)
    if config.run is not None:
        arm = _existing(PRUNED, Path(config.run), config.images)
        dense = None
        if config.reference is not None:
            dense = _existing(DENSE, Path(config.reference), None)
        runs = {Path(config.run).name: evaluate(arm, dense, scoring)}
    else:
        runs = _drawn(config, output, scoring, progress, load_pipeline)
    runs |= real_rows(scoring)
    result = Evaluation(output=str(output), runs=runs)
    record = {"command": command, "versions": versions(), **result.to_json()}
    _write(output / "eval.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    _write(output / "eval.csv", _csv(runs))
    _write(output / "eval.md", text(runs, command))
    return result


def real_rows(scoring: Scoring) -> dict[str, dict[str, Estimate]]:
    """What the embedded judge gives to real drawings; empty where the drawings are not there."""
    if scoring.files.missing("drawings"):
        return {}
    try:
        return calibration(scoring.files, scoring.device)
    except UserError as error:
        return {"real drawings, held out": {"name_rank": Estimate.absent(str(error))}}


def text(runs: Mapping[str, Mapping[str, Estimate]], command: str) -> str:
    """The runs as one Markdown table, a metric per line, and one line for all that is missing."""
    metrics = list(dict.fromkeys(name for found in runs.values() for name in found))
    shown = [m for m in metrics if any(_has(found, m) for found in runs.values())]
    lines = [f"`{command}`", "", f"| metric | {' | '.join(runs)} |", "|---" * (len(runs) + 1) + "|"]
    for metric in shown:
        cells = [cell(found[metric]) if _has(found, metric) else "–" for found in runs.values()]
        lines.append(f"| {metric} | {' | '.join(cells)} |")
    lines.append("")
    reasons: dict[str, list[str]] = {}
    for metric, estimate in next(iter(runs.values())).items():
        if estimate.missing:
            reasons.setdefault(estimate.missing, []).append(metric)
    lines += [f"{', '.join(names)}: {reason}" for reason, names in reasons.items()]
    return "\n".join(lines) + "\n"


def cell(estimate: Estimate) -> str:
    """A value with its interval."""
    if estimate.value is None:
        return estimate.missing
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.4g}"
    return f"{estimate.value:.4g} [{estimate.low:.4g}, {estimate.high:.4g}]"


def _has(found: Mapping[str, Estimate], metric: str) -> bool:
    return metric in found and found[metric].value is not None


def _drawn(
    config: EvalConfig,
    output: Path,
    scoring: Scoring,
    progress: Progress,
    load_pipeline: Callable[..., Any],
) -> dict[str, dict[str, Estimate]]:
    arms = [Arm(label=DENSE, config=plain_config(config, pruning=None, output=str(output / DENSE)))]
    if config.pruning is not None:
        arms.append(Arm(label=PRUNED, config=plain_config(config, output=str(output / PRUNED))))
    drawn = draw_arms(arms, config.images, progress, load_pipeline)
    dense = drawn[0]
    runs = {}
    for arm, pictures in zip(reversed(arms), reversed(drawn), strict=True):
        found = evaluate(pictures, None if pictures is dense else dense, scoring)
        checked = check(arm.config)
        kind = checked.device_type
        runs[arm.label] = {
            **found,
            "flops": flop_estimate(arm.config, checked.model, kind, arm.folder),
        }
    return runs


def _existing(label: str, folder: Path, images: int | None) -> DrawnArm:
    rows = read_rows(folder)
    if not rows:
        raise UserError(f"run: {folder} holds no finished picture")
    return DrawnArm(label=label, folder=folder, rows=tuple(rows[:images]), made=0)


def _csv(runs: Mapping[str, Mapping[str, Estimate]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["run", "metric", "value", "low", "high", "n", "missing"])
    for name, found in runs.items():
        for metric, e in found.items():
            writer.writerow([name, metric, e.value, e.low, e.high, e.n, e.missing])
    return out.getvalue()


def _write(path: Path, content: str) -> None:
    write_atomic(path, lambda file: file.write(content.encode()))
