"""What pruning saved: time from the runs' own clocks, operations from the cost model."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infinity.config import ModelConfig
from infinity.io.files import write_atomic
from infinity.io.rows import ImageRow
from infinity.policy import PruningPolicy
from stepvar_patch.experiments.compare import draw
from stepvar_patch.experiments.dry_run import dry_run
from stepvar_patch.experiments.estimate import NO_DENSE, Estimate
from stepvar_patch.experiments.maker import settings_of
from stepvar_patch.experiments.plan import ImageJob
from stepvar_patch.experiments.schema import ImageSettings
from stepvar_patch.policies.oracle import OraclePolicy

logger = logging.getLogger(__name__)

FLOPS = "flops.json"
_TRUSTED = 0.3
"""Largest share by which the counted dense operations may differ from the cost model's."""

_COUNTED = 4
"""Pictures whose operations are counted: the first of a run."""

_STAGES = ("text", "scales", "decode")


def time_estimates(
    rows: Sequence[ImageRow], dense: Sequence[ImageRow] | None
) -> dict[str, Estimate]:
    """Median time per picture and speed-up against dense; low and high are quartiles.

    ``ms`` and ``speedup`` are of the whole call (text encoder, scale loop, decoder);
    ``loop_speedup`` of the scale loop alone. Speed-ups are medians over pairs of one prompt and
    seed, whose batches were drawn one after the other.

    Args:
        rows: of the run; in a batch every picture has its share of the batch's time.
        dense: rows of the dense run; None where there is none.
    """
    if not all(map(_timed, (*rows, *(dense or ())))):
        absent = Estimate.absent("times of all pictures in run.jsonl")
        return dict.fromkeys(("ms", "speedup", "loop_speedup"), absent)
    found = {"ms": _median([_total(row) for row in rows])}
    by_file = {row.file: row for row in dense or ()}
    pairs = [(row, by_file[row.file]) for row in rows if row.file in by_file]
    if not pairs:
        absent = Estimate.absent(NO_DENSE)
        return {**found, "speedup": absent, "loop_speedup": absent}
    return {
        **found,
        "speedup": _median([_total(other) / _total(row) for row, other in pairs]),
        "loop_speedup": _median([other.ms["scales"] / row.ms["scales"] for row, other in pairs]),
    }


def flop_estimate(
    config: ImageSettings, model: ModelConfig, device_type: str, folder: Path
) -> Estimate:
    """Dense FLOPs / FLOPs: of the plan, or counted on a few pictures where the policy decides as
    it draws.

    Args:
        config: of the run.
        model: shapes.
        device_type: ``cpu`` or ``cuda``.
        folder: of the run, where `count_flops` left its result.
    """
    plan = dry_run(config, model, device_type)
    if plan.speedup is not None:
        return Estimate(value=plan.speedup, n=1)
    try:
        counted = json.loads((folder / FLOPS).read_text())
        ratio = float(counted["dense_flops"] / counted["flops"])
        return Estimate(value=ratio, n=counted["images"])
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        reason = f"{plan.policy} decides while it draws, and its operations were not counted"
        return Estimate.absent(reason)


def lacks_flops(config: ImageSettings, model: ModelConfig, device_type: str, folder: Path) -> bool:
    """Whether a run's policy decides as it draws and nobody has tried to count its operations."""
    return not (folder / FLOPS).exists() and dry_run(config, model, device_type).speedup is None


def count_flops(
    pipeline: Any,
    jobs: Sequence[ImageJob],
    config: ImageSettings,
    policy: PruningPolicy,
    folder: Path,
) -> None:
    """Counts a few pictures' operations dense and under a policy whose plan is not known before.

    The result goes to ``flops.json``. It is not believed when the dense count is far from the cost
    model's, as with kernels that the counter does not see; the file then holds none.

    Args:
        pipeline: of the run.
        jobs: prompts and seeds; the first few are counted.
        config: of the run.
        policy: of the run.
        folder: of the run.

    Raises:
        UserError: the policy does not fit the model, or the file cannot be written.
    """
    device_type = pipeline.device.type
    if not lacks_flops(config, pipeline.config, device_type, folder):
        return
    plan = dry_run(config, pipeline.config, device_type)
    settings, some = settings_of(config, pipeline), jobs[:_COUNTED]
    try:
        dense, pruned = (
            sum(draw(pipeline, job, settings, kind, count=True).flops or 0 for job in some)
            for kind in (None, policy)
        )
    except RuntimeError as error:  # a kernel that cannot run under the counter
        logger.warning("%s: operations could not be counted (%s)", folder, error)
        dense = pruned = 0
    if isinstance(policy, OraclePolicy):
        pruned -= dense
    found: dict[str, int | None] = {
        "dense_flops": dense,
        "flops": pruned,
        "images": len(some),
    }
    if abs(dense / len(some) / plan.dense_flops - 1) > _TRUSTED or pruned <= 0:
        logger.warning("%s: the count of operations is not believed", folder)
        found |= {"dense_flops": None, "flops": None}
    record = json.dumps(found).encode()
    write_atomic(folder / FLOPS, lambda file: file.write(record))


def _timed(row: ImageRow) -> bool:
    """Whether the manifest, which anybody may have written, has the times of every stage."""
    return all(row.ms.get(stage, -1) >= 0 for stage in _STAGES) and row.ms["scales"] > 0


def _total(row: ImageRow) -> float:
    return sum(row.ms[stage] for stage in _STAGES)


def _median(values: Sequence[float]) -> Estimate:
    low, value, high = np.percentile(np.asarray(values), (25, 50, 75))
    return Estimate(value=float(value), low=float(low), high=float(high), n=len(values))
