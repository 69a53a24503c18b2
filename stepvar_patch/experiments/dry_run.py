"""What a config would compute, scale by scale, told before any weight is read."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from infinity.config import ModelConfig
from infinity.errors import UserError
from infinity.policy import DensePolicy
from stepvar_patch.cost import ScaleCost, plan_cost
from stepvar_patch.experiments.pruning import policy_request, resolve_pruning, sampling_settings
from stepvar_patch.experiments.schema import ImageSettings


@dataclass(frozen=True, kw_only=True)
class ScaleLine:
    """One scale of a plan.

    Attributes:
        scale: index.
        grid: tokens high × wide.
        tokens: of the grid.
        kept: of them, computed per row; 0 when the scale is left out.
        rows: guidance rows, over all images.
        flops: of the transformer, over all images.
        dense_flops: of the same scale without pruning.
        cache_bytes: keys and values that all layers hold after it.
    """

    scale: int
    grid: tuple[int, int]
    tokens: int
    kept: int
    rows: int
    flops: int
    dense_flops: int
    cache_bytes: int


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """The plan of one call for one image.

    Attributes:
        policy: kind, ``dense`` without pruning.
        scales: one line each.
        flops: of the transformer; None when the policy decides while it draws.
        dense_flops: without pruning.
        speedup: dense FLOPs / FLOPs.
        note: why there is no plan to show, or empty.
    """

    policy: str
    scales: tuple[ScaleLine, ...]
    flops: int | None
    dense_flops: int
    speedup: float | None
    note: str = ""

    def to_json(self) -> dict[str, object]:
        """The fields as JSON values."""
        return asdict(self)


def dry_run(config: ImageSettings, model: ModelConfig, device_type: str) -> DryRun:
    """The plan of a config on a model.

    Args:
        config: checked.
        model: shapes; no weights.
        device_type: decides the size of a cached number.

    Raises:
        UserError: the settings do not fit the model.
    """
    policy = resolve_pruning(config, model)
    request = policy_request(model, config, device_type=device_type)
    settings = sampling_settings(config, model, request.schedule)
    dense = plan_cost(DensePolicy(), model, request, settings=settings)
    try:
        plan = dense if policy is None else plan_cost(policy, model, request, settings=settings)
    except UserError as error:
        lines = _lines(dense.scales, dense.scales)
        return DryRun(
            policy=policy.name if policy else "dense",
            scales=lines,
            flops=None,
            dense_flops=dense.flops,
            speedup=None,
            note=f"{error}; shown is the dense plan",
        )
    return DryRun(
        policy=policy.name if policy else "dense",
        scales=_lines(plan.scales, dense.scales),
        flops=plan.flops,
        dense_flops=dense.flops,
        speedup=dense.flops / plan.flops,
    )


def _lines(plan: Sequence[ScaleCost], dense: Sequence[ScaleCost]) -> tuple[ScaleLine, ...]:
    return tuple(
        ScaleLine(
            scale=now.scale,
            grid=now.grid,
            tokens=now.grid[0] * now.grid[1],
            kept=now.kept,
            rows=now.rows if now.run else 0,
            flops=now.flops,
            dense_flops=before.flops,
            cache_bytes=now.cache_bytes,
        )
        for now, before in zip(plan, dense, strict=True)
    )


def as_text(run: DryRun) -> str:
    """The plan as a table of plain text."""
    head = ["scale", "grid", "tokens", "kept", "rows", "GFLOP", "dense", "cache MiB"]
    body = [
        [
            str(line.scale),
            f"{line.grid[0]}×{line.grid[1]}",
            str(line.tokens),
            str(line.kept) if line.rows else "not run",
            str(line.rows),
            f"{line.flops / 1e9:.2f}",
            f"{line.dense_flops / 1e9:.2f}",
            f"{line.cache_bytes / 2**20:.1f}",
        ]
        for line in run.scales
    ]
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    table = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in (head, *body)
    ]
    dense = f"{run.dense_flops / 1e9:.1f} GFLOP dense"
    if run.note:
        total = f"{run.policy}: {run.note}; {dense}"
    else:
        assert run.flops is not None
        assert run.speedup is not None
        total = (
            f"{run.policy}: {run.flops / 1e9:.1f} GFLOP per image against {dense}, "
            f"{run.speedup:.2f}× fewer"
        )
    return "\n".join([*table, total])
