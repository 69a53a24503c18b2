"""The attention calls of a model: per scale, with all tokens, with a policy's, and ragged."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import ConfigDict

from infinity.config import PRESETS, ModelConfig, Resolution
from infinity.errors import UserError
from infinity.policy import PolicyRequest
from stepvar_patch.cost import Loaded
from stepvar_patch.experiments.loading import FROM_FILE
from stepvar_patch.experiments.problems import nearest
from stepvar_patch.experiments.pruning import (
    STRICT,
    PruningSetting,
    policy_request,
    resolve_pruning,
)
from stepvar_patch.experiments.schema import Device, Dtype, FilePath, ImageSettings, Pixels

Kind = Literal["dense", "pruned", "ragged"]


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """One run of ``stepvar bench attention``.

    Attributes:
        preset: whose shapes, e.g. infinity-2b.
        output: JSON file.
        resolution: ``None`` is the model's own.
        images: of a call; with guidance each has two rows.
        scales: counted from the start, or from the end if negative; ``None`` is all of them.
        kinds: ``dense``: all tokens; ``pruned``: those that ``pruning`` keeps, at every scale where
            that differs; ``ragged``: every second row has ``ragged_share`` of the pruned (else of
            the dense) tokens and keys.
        ragged_share: see ``kinds``.
        device: ``None`` takes a GPU if there is one.
        dtype: ``None`` is bfloat16 on a GPU and float32 on the CPU.
        warmup: calls before those that count.
        rounds: every round times every backend once.
        aspect_ratio, height, width: of the picture; ``None`` is square.
        pruning: decides how many tokens and keys there are; a policy or a YAML file that holds one.
        calls: that one timing spans; on a GPU they run in one CUDA graph where that can be had.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    preset: Annotated[str, MinLen(1)] = "infinity-2b"
    output: FilePath = "outputs/bench/attention.json"
    resolution: Resolution | None = None
    aspect_ratio: Annotated[float, Ge(0.1), Le(10)] | None = None
    height: Pixels | None = None
    width: Pixels | None = None
    pruning: PruningSetting | None = field(default=None, metadata={FROM_FILE: True})
    images: Annotated[int, Ge(1), Le(64)] = 1
    scales: Annotated[tuple[int, ...], MinLen(1)] | None = None
    kinds: Annotated[tuple[Kind, ...], MinLen(1)] = ("dense", "pruned", "ragged")
    ragged_share: Annotated[float, Gt(0), Le(1)] = 0.8
    device: Device | None = None
    dtype: Dtype | None = None
    warmup: Annotated[int, Ge(1), Le(1000)] = 3
    rounds: Annotated[int, Ge(1), Le(100_000)] = 10
    calls: Annotated[int, Ge(1), Le(1000)] = 10

    def __post_init__(self) -> None:
        _pictures(self)
        if self.preset not in PRESETS:
            raise ValueError(f"preset is {self.preset!r}; {nearest(self.preset, list(PRESETS))}")


@dataclass(frozen=True, kw_only=True)
class AttentionCase:
    """One attention call.

    Attributes:
        scale: index in the schedule.
        kind: see `AttentionConfig`.
        heads, head_dim: of the model.
        queries: per row.
        keys: per row: cached ones and the scale's own.
    """

    scale: int
    kind: Kind
    heads: int
    head_dim: int
    queries: tuple[int, ...]
    keys: tuple[int, ...]

    @property
    def ragged(self) -> bool:
        return len(set(self.queries)) > 1 or len(set(self.keys)) > 1

    @property
    def flops(self) -> int:
        """Of both matrix products."""
        pairs = sum(q * k for q, k in zip(self.queries, self.keys, strict=True))
        return 4 * self.heads * self.head_dim * pairs


def cases(config: AttentionConfig) -> Iterator[AttentionCase]:
    """The calls of one layer, scale by scale.

    Raises:
        UserError: a scale that the schedule does not have, or a policy whose counts depend on the
            picture.
    """
    preset = PRESETS[config.preset]
    model = replace(preset, resolution=config.resolution or preset.resolution)
    pictures = _pictures(config)
    request = policy_request(model, pictures, images=config.images)
    tokens = request.schedule.tokens_per_scale
    kept, cached, seen = _counts(pictures, model, request)
    wanted = range(len(tokens)) if config.scales is None else config.scales
    for scale in wanted:
        if not -len(tokens) <= scale < len(tokens):
            raise UserError(f"scales holds {scale}, but the schedule has {len(tokens)} scales")
    rows, shape = config.images * request.guidance_rows, model.transformer
    for si in sorted({scale % len(tokens) for scale in wanted}):
        dense = (tokens[si], sum(tokens[: si + 1]))
        pruned = (kept[si], sum(cached[:si]) + seen[si]) if kept[si] else dense
        shorter = tuple(max(1, round(n * config.ragged_share)) for n in pruned)
        lengths: dict[Kind, tuple[tuple[int, ...], tuple[int, ...]]] = {
            "dense": (dense, dense),
            "pruned": (pruned, pruned),
            "ragged": (pruned, shorter),
        }
        for kind in config.kinds:
            even, odd = lengths[kind]
            if (kind == "pruned" and even == dense) or (kind == "ragged" and even == odd):
                continue
            yield AttentionCase(
                scale=si,
                kind=kind,
                heads=shape.heads,
                head_dim=shape.head_dim,
                queries=tuple((even, odd)[row % 2][0] for row in range(rows)),
                keys=tuple((even, odd)[row % 2][1] for row in range(rows)),
            )


def _pictures(config: AttentionConfig) -> ImageSettings:
    return ImageSettings(
        aspect_ratio=config.aspect_ratio,
        height=config.height,
        width=config.width,
        pruning=config.pruning,
    )


def _counts(
    pictures: ImageSettings, model: ModelConfig, request: PolicyRequest
) -> tuple[list[int], list[int], list[int]]:
    """Tokens computed, cached, and seen of their own scale, per row and scale in a pruned layer.

    Raises:
        UserError: see :func:`cases`.
    """
    tokens = list(request.schedule.tokens_per_scale)
    policy = resolve_pruning(pictures, model)
    if policy is None:
        return tokens, tokens, tokens
    run = policy.start(request)
    if not isinstance(run, Loaded):
        raise UserError(f"pruning: {policy.name} decides while it draws; give fixed ratios")
    loads = [run.load(si) for si in range(len(tokens))]
    kept, cached, seen = list[int](), list[int](), list[int]()
    for load, n in zip(loads, tokens, strict=True):
        whole = load.layers is None
        kept.append(0 if not load.run else n if whole else load.kept)
        cached.append(0 if not (load.run and load.writes) else n if whole else load.cached)
        seen.append(n if whole else load.kept if load.visible is None else load.visible)
    return kept, cached, seen
