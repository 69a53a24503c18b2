"""A toy transformer with random weights that react to everything, and ways to run it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from infinity.config import TransformerConfig
from infinity.policy import DensePolicy, PruningPolicy
from infinity.sampling.loop import ScaleEnd, ScaleLoop
from infinity.sampling.noise import NoiseSource, PerImageNoise
from infinity.sampling.settings import SamplingSettings
from infinity.schedule import Grid, ScaleSchedule, scale_schedule
from infinity.text.base import TextFeatures
from infinity.timing import NO_TIMER, StageTimer
from infinity.tokens import KeepSet
from infinity.transformer.call_state import CallState
from infinity.transformer.fused import FusedBlocks
from infinity.transformer.guidance import Guidance
from infinity.transformer.model import InfinityTransformer
from stepvar_patch.select import lattice_score


def toy_model(*, patchify: bool = False, depth: int = 3, seed: int = 0) -> InfinityTransformer:
    """Width 64, two heads; every parameter random, so that no term can be dropped unnoticed."""
    config = TransformerConfig(
        depth=depth,
        width=64,
        heads=2,
        block_chunks=1,
        codebook_dim=3 if patchify else 6,
        patchify=patchify,
        text_width=128,
        text_max_tokens=12,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = InfinityTransformer(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.6 / parameter.shape[-1] ** 0.5 if parameter.ndim >= 2 else 0.1
            spread = 0.5 if "ada_gss" in name else spread
            parameter.add_(torch.randn(parameter.shape, generator=generator) * spread)
    return model


def toy_text(model: InfinityTransformer, lengths: tuple[int, ...], seed: int = 1) -> TextFeatures:
    """Random features; prompt ``i`` has the same rows whatever else is in the batch."""
    rows = [
        torch.randn(n, model.config.text_width, generator=torch.Generator().manual_seed(seed + i))
        for i, n in enumerate(lengths)
    ]
    return TextFeatures.stack(rows)


def toy_settings(
    schedule: ScaleSchedule,
    *,
    guidance_scale: float | tuple[float, ...] = 3.0,
    guidance: Guidance | None = None,
    top_p: float = 0.97,
) -> SamplingSettings:
    count = len(schedule)
    scales = guidance_scale if isinstance(guidance_scale, tuple) else (guidance_scale,) * count
    return SamplingSettings(
        guidance_scale=scales,
        temperature=(1.0,) * count,
        top_k=0,
        top_p=top_p,
        guidance=guidance or Guidance(frozenset(), True),
    )


def toy_run(
    model: InfinityTransformer,
    text: TextFeatures,
    schedule: ScaleSchedule | None = None,
    *,
    settings: SamplingSettings | None = None,
    policy: PruningPolicy | None = None,
    noise: NoiseSource | None = None,
    decode: Callable[[Tensor], Tensor] | None = None,
    attention: str = "sdpa",
    on_scale_end: list[ScaleEnd] | None = None,
    timer: StageTimer = NO_TIMER,
    fused: FusedBlocks | None = None,
) -> Tensor:
    """Latents of one call with per-image noise, seeds 0, 1, …"""
    schedule = schedule or scale_schedule(1.0, "0.06M")
    settings = settings or toy_settings(schedule)
    rows = model.with_unconditional(text) if settings.guided else text
    return ScaleLoop(
        model,
        model.condition(rows),
        schedule,
        settings,
        noise or PerImageNoise(range(len(text)), model.device),
        policy or DensePolicy(),
        images=len(text),
        decode=decode,
        attention=attention,
        on_scale_end=None if on_scale_end is None else on_scale_end.append,
        timer=timer,
        fused=fused,
    ).finish()


def remembered_calls(monkeypatch: pytest.MonkeyPatch) -> list[CallState]:
    """Takes the state of every call from now on, which the loop itself forgets."""
    calls: list[CallState] = []
    original = CallState.__init__

    def remembered(self: CallState, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        calls.append(self)

    monkeypatch.setattr(CallState, "__init__", remembered)
    return calls


def lattice(grid: Grid, count: int) -> KeepSet:
    """``count`` evenly spread positions of one row."""
    return KeepSet.of_rows(lattice_score(grid).topk(count).indices.sort().values[None])
