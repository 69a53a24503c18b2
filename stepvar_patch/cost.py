"""What a plan costs before anything runs: FLOPs, cached keys and values, and the speed-up.

Counts what a dispatcher sees: matrix products and attention, a multiply-add as 2. Norms, copies and
scores without matrix products are left out. A policy takes part by runs with a ``load`` method
(:class:`Loaded`).

Symbols: N positions of a scale, M kept, S keys seen, C width, F FFN width, T text rows.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

from infinity.config import ModelConfig, TransformerConfig
from infinity.errors import UserError
from infinity.policy import Branch, DensePolicy, DenseRun, PolicyRequest, PruningPolicy, Rows
from infinity.sampling.settings import SamplingSettings, resolve_settings
from infinity.schedule import Grid


@dataclass(frozen=True, kw_only=True)
class ScaleLoad:
    """What a policy asks of one scale, as far as it is known before the call.

    Attributes:
        run: False if the scale is dropped.
        rows: guidance rows that run from here on.
        kept: tokens computed in pruned branches.
        layers: pruned layers; None = none.
        branches: pruned branches of those layers; a pruned layer prunes all three.
        cached: tokens whose keys and values a pruned layer caches.
        writes: False if no layer caches anything at this scale.
        visible: tokens of this scale that a pruned layer's queries see, if not just the kept ones.
        head_on_kept: logits are computed for kept tokens only.
        choosing: FLOPs per row and pruned branch of choosing its tokens, where that takes matrix
            products.
    """

    run: bool = True
    rows: Rows = "both"
    kept: int = 0
    layers: range | None = None
    branches: frozenset[Branch] = frozenset({"self_attention", "cross_attention", "ffn"})
    cached: int = 0
    writes: bool = True
    visible: int | None = None
    head_on_kept: bool = False
    choosing: int = 0


@runtime_checkable
class Loaded(Protocol):
    """A run whose cost is known beforehand."""

    def load(self, si: int) -> ScaleLoad: ...


@dataclass(frozen=True, kw_only=True)
class ScaleCost:
    """One scale of a plan.

    Attributes:
        scale, grid: which.
        run: whether it runs.
        rows: rows that run, over all images, at its first layer.
        kept: tokens computed per row in pruned layers; all of them at a dense scale, 0 if dropped.
        flops: of the whole scale and batch.
        cache_bytes: keys and values that all layers hold after it.
    """

    scale: int
    grid: Grid
    run: bool
    rows: int
    kept: int
    flops: int
    cache_bytes: int


@dataclass(frozen=True, kw_only=True)
class PlanCost:
    """All scales, and what is paid once per call.

    Attributes:
        scales: one entry per scale of the schedule.
        text_flops: text projections, and keys and values for cross-attention.
    """

    scales: tuple[ScaleCost, ...]
    text_flops: int

    @property
    def flops(self) -> int:
        """Transformer FLOPs of the call, text encoder and image decoder left out."""
        return self.text_flops + sum(scale.flops for scale in self.scales)


def plan_cost(
    policy: PruningPolicy,
    model: ModelConfig,
    request: PolicyRequest,
    *,
    settings: SamplingSettings | None = None,
    text_tokens: int = 24,
) -> PlanCost:
    """The cost of one call under ``policy``.

    Args:
        policy: its run must know its load, or be dense.
        model: shapes, and sampling defaults where ``settings`` is None.
        request: what the policy would be told.
        settings: where guidance applies.
        text_tokens: rows per prompt, in both guidance halves.

    Raises:
        UserError: the policy does not fit the request, or its cost depends on the picture.
    """
    run = policy.start(request)
    if isinstance(run, Loaded):
        loads = [run.load(si) for si in range(len(request.schedule))]
    elif type(run) is DenseRun:
        loads = [ScaleLoad(cached=n) for n in request.schedule.tokens_per_scale]
    else:
        raise UserError(
            f"policy {policy.name} decides while it draws, so its cost cannot be told beforehand"
        )
    if settings is None:
        settings = resolve_settings(model.sampling, len(loads), request.layers)
    return _Ledger(model.transformer, request, settings, text_tokens).total(loads)


def speedup(policy: PruningPolicy, model: ModelConfig, request: PolicyRequest, **how: Any) -> float:
    """FLOPs of the dense call over those under ``policy``; ``how`` as in :func:`plan_cost`.

    Raises:
        UserError: see :func:`plan_cost`.
    """
    dense = plan_cost(DensePolicy(), model, request, **how).flops
    return dense / plan_cost(policy, model, request, **how).flops


@dataclass
class _Ledger:
    """Adds up a call, scale by scale."""

    config: TransformerConfig
    request: PolicyRequest
    settings: SamplingSettings
    text_tokens: int
    cached: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.cached = [0] * self.config.depth

    @cached_property
    def uncond_depth(self) -> int:
        """Leading layers in which the unconditional half lives."""
        return self.settings.guidance.unconditional_depth(self.config.depth)

    def total(self, loads: list[ScaleLoad]) -> PlanCost:
        images, c, t = self.request.images, self.config.width, self.text_tokens
        rows, costs = images * self.request.guidance_rows, []
        text = self._text(rows)
        last = max(si for si, load in enumerate(loads) if load.run)
        for si, load in enumerate(loads):
            alone = not self.settings.guided_from(si) or (load.run and load.rows != "both")
            if alone and rows > images and si <= last:
                rows = images
                text += self.uncond_depth * images * 4 * t * c**2
            costs.append(self._scale(si, load, rows, last))
        return PlanCost(scales=tuple(costs), text_flops=text)

    def _text(self, rows: int) -> int:
        c, wide, t = self.config.width, self.config.text_width, self.text_tokens
        pool = t * (4 * wide * c + 4 * c) + 2 * c**2
        context = t * (2 * wide * c + 2 * c**2)
        live = rows * self.uncond_depth + self.request.images * (
            self.config.depth - self.uncond_depth
        )
        return rows * (pool + context + 12 * c**2) + live * 4 * t * c**2

    def _scale(self, si: int, load: ScaleLoad, rows: int, last: int) -> ScaleCost:
        images, c = self.request.images, self.config.width
        grid = self.request.schedule.grids[si]
        n, bits = grid[0] * grid[1], self.config.token_bits
        flops = images * n * 2 * bits * c if 0 < si <= last else 0
        if load.run:
            for layer in range(self.config.depth):
                here = rows if layer < self.uncond_depth else images
                pruned = load.layers is not None and layer in load.layers
                flops += here * self._layer(layer, n, load if pruned else None)
                if si < last and load.writes:
                    self.cached[layer] += load.cached if pruned else n
            flops += self._head(rows, n, load, self.settings.guidance_scale[si])
        else:
            load = replace(load, kept=0)
        bytes_each = 4 if self.request.device_type == "cpu" else 2
        held = sum(
            count * (rows if layer < self.uncond_depth else images)
            for layer, count in enumerate(self.cached)
        )
        return ScaleCost(
            scale=si,
            grid=grid,
            run=load.run,
            rows=rows,
            kept=n if load.run and load.layers is None else load.kept,
            flops=flops,
            cache_bytes=held * 2 * c * bytes_each,
        )

    def _layer(self, layer: int, n: int, load: ScaleLoad | None) -> int:
        c, f = self.config.width, self.config.ffn_width

        def tokens(branch: Branch) -> int:
            return load.kept if load is not None and branch in load.branches else n

        m = tokens("self_attention")
        visible = m if load is None or load.visible is None else load.visible
        attention = m * (8 * c**2 + 4 * (self.cached[layer] + visible) * c)
        chosen = 0 if load is None else load.choosing * len(load.branches)
        text = tokens("cross_attention") * (4 * c**2 + 4 * self.text_tokens * c)
        return attention + text + tokens("ffn") * 4 * c * f + chosen

    def _head(self, rows: int, n: int, load: ScaleLoad, guidance_scale: float) -> int:
        guided = self.settings.guidance.logits and guidance_scale != 1
        rows = rows if guided else self.request.images
        c, positions = self.config.width, load.kept if load.head_on_kept else n
        return rows * (positions * 4 * c * self.config.token_bits + 4 * c**2)
