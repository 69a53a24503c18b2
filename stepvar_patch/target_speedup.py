"""Keep ratios that reach a wanted speed-up in FLOPs."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from infinity.config import ModelConfig
from infinity.errors import UserError
from infinity.policy import PolicyRequest, PruningPolicy
from stepvar_patch.cost import speedup
from stepvar_patch.rules import ScaleRule

LOWEST_KEEP_RATIO = 0.05
"""How far :func:`solve` may go."""

_HALVINGS = 24


def solve(
    policy: PruningPolicy,
    target_speedup: float,
    model: ModelConfig,
    request: PolicyRequest,
    **how: Any,
) -> Any:
    """``policy`` with keep ratios that reach ``target_speedup`` in FLOPs.

    The scales that take it are those whose rules have a keep_ratio below 1; their drop ratios keep
    their proportions until one reaches its bound, a keep_ratio of 0.05. Rows, dropped scales and
    everything else stay as they are. ``how`` as in :func:`~stepvar_patch.cost.plan_cost`.

    Raises:
        UserError: no rule prunes tokens, the target is out of reach, or see
            :func:`~stepvar_patch.cost.plan_cost`.
    """
    scales: dict[str | int, ScaleRule] = dict(getattr(policy, "scales", {}))
    drops = {k: 1 - rule.keep_ratio for k, rule in scales.items() if rule.keep_ratio < 1}
    if not drops:
        raise UserError(
            "target_speedup needs at least one rule in scales with a keep_ratio below 1, which "
            "says where tokens may be dropped"
        )

    def scaled(factor: float) -> Any:
        ratios = {k: max(LOWEST_KEEP_RATIO, round(1 - factor * d, 4)) for k, d in drops.items()}
        rules = {k: replace(scales[k], keep_ratio=ratio) for k, ratio in ratios.items()}
        return replace(policy, scales=scales | rules)  # type: ignore[type-var]

    low, high = 0.0, _widest(scaled, 1 / min(drops.values()), request)
    reachable = speedup(scaled(high), model, request, **how)
    least = speedup(scaled(low), model, request, **how)
    if not least <= target_speedup <= reachable:
        raise UserError(
            f"target_speedup is {target_speedup}; allowed with these scales: {least:.2f} to "
            f"{reachable:.2f}"
        )
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        enough = speedup(scaled(middle), model, request, **how) >= target_speedup
        low, high = (low, middle) if enough else (middle, high)
    return scaled(high)


def _widest(scaled: Callable[[float], Any], high: float, request: PolicyRequest) -> float:
    """The largest factor up to ``high`` whose policy starts; its ratios as written must."""

    def starts(factor: float) -> bool:
        try:
            scaled(factor).start(request)
        except UserError:
            return False
        return True

    if starts(high):
        return high
    scaled(1.0).start(request)
    low = 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if starts(middle) else (low, middle)
    return low
