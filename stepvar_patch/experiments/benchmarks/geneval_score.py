"""A GenEval folder scored: one verdict per sample, means per task, and their mean."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from jaxtyping import UInt8
from torch import Tensor

from infinity.errors import UserError
from infinity.io.files import write_atomic
from stepvar_patch.experiments.benchmarks.geneval import GenEval, checked_metadata
from stepvar_patch.experiments.benchmarks.geneval_rules import ColourOf, Detection, confident, judge
from stepvar_patch.experiments.benchmarks.layout import check_complete, prompt_row
from stepvar_patch.experiments.estimate import Bootstrap
from stepvar_patch.experiments.pictures import read_picture

RESULTS = "results.jsonl"

Detect = Callable[[UInt8[Tensor, "h w 3"]], list[Detection]]
NameColours = Callable[[UInt8[Tensor, "h w 3"], list[Detection]], list[str]]


@dataclass(frozen=True, kw_only=True)
class GenEvalScore:
    """The benchmark's numbers.

    Attributes:
        overall: mean over the tasks.
        low: lower end of its 95 % bootstrap interval over prompts.
        high: its upper end.
        tasks: share of correct samples per task.
        images: samples.
    """

    overall: float
    low: float
    high: float
    tasks: dict[str, float]
    images: int


def score_folder(
    folder: Path, detect: Detect, name_colours: NameColours, device: str
) -> GenEvalScore:
    """Scores a complete GenEval folder and writes ``results.jsonl`` into it, one line per sample.

    Args:
        folder: in the benchmark's layout.
        detect: finds instances.
        name_colours: of instances of one class.
        device: where pictures are put.

    Raises:
        UserError: a file is missing or not what it should be.
    """
    layout, rows = GenEval(), []
    places = sorted(folder.iterdir()) if folder.is_dir() else []
    for place in places:
        if not (place.is_dir() and place.name.isdigit()):
            continue
        path = place / "metadata.jsonl"
        if not path.is_file():
            raise UserError(f"{path}: is missing")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read: {error}") from error
        metadata = checked_metadata(text, str(path))
        rows.append(prompt_row(place.name, metadata["prompt"], str(path), geneval=metadata))
    if not rows:
        raise UserError(f"{folder}: holds no numbered folder of GenEval")
    check_complete(layout, rows, folder)
    lines, verdicts = [], []
    for row in rows:
        metadata = row.extra["geneval"]
        for file in layout.files(row)[1:]:
            image = read_picture(folder / file).to(device)
            objects = confident(detect(image), metadata["tag"])
            colour_of = _colours(name_colours, image)
            verdict = judge(metadata, objects, colour_of)
            verdicts.append((row.id, metadata["tag"], verdict.correct))
            lines.append(
                {
                    "filename": str(file),
                    "tag": metadata["tag"],
                    "prompt": metadata["prompt"],
                    "correct": verdict.correct,
                    "reason": "\n".join(verdict.reasons),
                }
            )
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_atomic(folder / RESULTS, lambda target: target.write(text.encode()))
    return summarise(verdicts)


def summarise(verdicts: list[tuple[str, str, bool]]) -> GenEvalScore:
    """The benchmark's numbers from (prompt id, task, correct) of every sample."""
    tags = list(dict.fromkeys(tag for _, tag, _ in verdicts))
    tasks = {tag: fmean(right for _, t, right in verdicts if t == tag) for tag in tags}
    total = torch.zeros(1, dtype=torch.float64)
    for tag in tags:
        mine = [(i, right) for i, t, right in verdicts if t == tag]
        weights = torch.from_numpy(Bootstrap([i for i, _ in mine]).weights)
        right = torch.tensor([float(r) for _, r in mine], dtype=torch.float64)
        total = total + (weights @ right) / weights.sum(1) / len(tags)
    low, high = torch.quantile(total, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    overall = fmean(tasks.values())
    return GenEvalScore(overall=overall, low=low, high=high, tasks=tasks, images=len(verdicts))


def _colours(name: NameColours, image: UInt8[Tensor, "h w 3"]) -> ColourOf:
    return lambda objects: name(image, list(objects))
