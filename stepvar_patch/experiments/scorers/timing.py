"""What pruning saved: time from the runs' own clocks, operations from the cost model."""

from collections.abc import Sequence

import numpy as np

from infinity.config import ModelConfig
from infinity.io.manifest import ImageRow
from stepvar_patch.experiments.dry_run import dry_run
from stepvar_patch.experiments.estimate import Estimate
from stepvar_patch.experiments.schema import ImageSettings

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
    found = {"ms": _median([_total(row) for row in rows])}
    by_file = {row.file: row for row in dense or ()}
    pairs = [(row, by_file[row.file]) for row in rows if row.file in by_file]
    if not pairs:
        absent = Estimate.absent("no dense run to compare with")
        return {**found, "speedup": absent, "loop_speedup": absent}
    return {
        **found,
        "speedup": _median([_total(other) / _total(row) for row, other in pairs]),
        "loop_speedup": _median([other.ms["scales"] / row.ms["scales"] for row, other in pairs]),
    }


def flop_estimate(config: ImageSettings, model: ModelConfig, device_type: str) -> Estimate:
    """Dense transformer FLOPs / FLOPs of the plan; absent for policies that decide as they draw."""
    plan = dry_run(config, model, device_type)
    if plan.speedup is None:
        return Estimate.absent(f"{plan.policy} decides while it draws; stepvar ablate counts it")
    return Estimate(value=plan.speedup, n=1)


def _total(row: ImageRow) -> float:
    return sum(row.ms[stage] for stage in _STAGES)


def _median(values: Sequence[float]) -> Estimate:
    low, value, high = np.percentile(np.asarray(values), (25, 50, 75))
    return Estimate(value=float(value), low=float(low), high=float(high), n=len(values))
