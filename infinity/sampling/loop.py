"""The scale loop: from text conditioning to the summed latent (spec: infinity-transformer §7.2)."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from infinity.policy import PolicyRequest, PolicyRun, PruningPolicy, ScalePlan, ScaleView
from infinity.sampling.bits import sample_bits, truncate
from infinity.sampling.echo import GuidanceEcho
from infinity.sampling.noise import NoiseSource
from infinity.sampling.settings import SamplingSettings
from infinity.schedule import Grid, ScaleSchedule
from infinity.timing import NO_TIMER, StageTimer
from infinity.tokenizer.quantizer import (
    codes_from_bits,
    gain_of,
    next_scale_input,
    resize,
    tokens_to_bits,
)
from infinity.tokens import pack
from infinity.transformer.call_state import CacheMemory, CallState
from infinity.transformer.fused import FusedBlocks
from infinity.transformer.guidance import guide
from infinity.transformer.model import InfinityTransformer, TextConditioning
from infinity.transformer.stack import BlockStack, StackOutput

Around = Callable[[int], AbstractContextManager]
"""``scale → context`` in which everything of that scale happens; −1 is what comes before the first.
"""


@dataclass(frozen=True)
class ScaleEnd:
    """What a callback sees after each executed scale.

    Attributes:
        scale: index in the schedule.
        grid: token grid.
        logits: ``(T, D, 2)`` after temperature and guidance, before truncation, images end to end;
            T counts kept tokens only if the plan restores codes, else all.
        bits: ``(B, L, D)`` sampled, transformer layout; ``(T, D)`` where the plan restores codes.
        codes: ``(B, d, Hk, Wk)`` what the bits stand for, dense, on the scale's latent grid.
        latent: ``(B, d, Hv, Wv)`` sum so far, on the final grid.
    """

    scale: int
    grid: Grid
    logits: Tensor
    bits: Tensor
    codes: Float[Tensor, "images d hk wk"]
    latent: Float[Tensor, "images d hv wv"]


@torch.inference_mode()
def generate_latents(
    model: InfinityTransformer,
    text: TextConditioning,
    schedule: ScaleSchedule,
    settings: SamplingSettings,
    noise: NoiseSource,
    policy: PruningPolicy,
    *,
    images: int,
    gains: Float[Tensor, " k"] | None = None,
    decode: Callable[[Tensor], Tensor] | None = None,
    forced_bits: Sequence[Tensor] = (),
    attention: str = "auto",
    on_scale_end: Callable[[ScaleEnd], None] | None = None,
    timer: StageTimer = NO_TIMER,
    fused: FusedBlocks | None = None,
    memory: CacheMemory | None = None,
    around: Around = lambda si: nullcontext(),
) -> Float[Tensor, "images d hv wv"]:
    """Summed codes of all executed scales, ``(B, d, Hv, Wv)`` fp32.

    Args:
        text: B rows, or 2B (conditional first) when ``settings.guided``.
        gains: code amplitude per scale of tokenizers that have them.
        decode: given to policies that look at early pictures.
        forced_bits: tokenizer-layout bits ``(B, Hv_s, Wv_s, d)`` that replace the sampled ones at
            the first scales.
        timer: hears the end of every stage.
        fused: the blocks in fused form; None runs them as ``block.py`` reads.
        memory: where the caches of fused blocks live.
        around: entered for every scale; nothing is computed outside.

    Raises:
        ValueError: a plan that contradicts itself or the settings.
    """
    patchify = model.config.patchify
    latent_grids = schedule.latent_grids(patchify)
    request = PolicyRequest(
        schedule=schedule,
        images=images,
        guidance_rows=len(text.lengths) // images,
        layers=model.config.depth,
        width=model.config.width,
        heads=model.config.heads,
        patchify=patchify,
        device_type=model.device.type,
        guided=tuple(settings.guided_from(si) for si in range(len(schedule))),
        rows_live=settings.guidance.logits,
    )
    with around(-1):
        run = policy.start(request)
        call = CallState(
            model,
            text,
            schedule,
            images=images,
            guidance=settings.guidance,
            cached_tokens=run.cached_tokens,
            attention=attention,
            timer=timer,
            fused=fused,
            memory=memory,
        )
        latent = torch.zeros(
            images, model.config.codebook_dim, *latent_grids[-1], device=model.device
        )
    stack, codes, echo = BlockStack(call), None, GuidanceEcho()
    timer.mark("conditioning")
    for si, grid in enumerate(schedule.grids):
        with around(si):
            if call.rows == "both" and not settings.guided_from(si):
                call.keep_half("cond")
            timer.mark("pack", si)
            x = _embed(call, latent, si, latent_grids)
            view = ScaleView(latent, codes, x, grid, call.rows, decode)
            timer.mark("next_input", si)
            plan = run.plan_scale(si, view)
            timer.mark("select", si)
            draws = noise.exponential(si, grid[0] * grid[1] * model.config.token_bits)
            timer.mark("sampling", si)
            if not plan.run:
                continue
            if plan.rows not in ("both", call.rows):
                call.keep_half(plan.rows)
                x = call.active(x)
            scale = settings.guidance_scale[si] if plan.guidance is None else plan.guidance
            last = si + 1 == len(schedule) or plan.stop_after
            out = stack.run(si, x, plan, run, scale, last)
            if out.rows == "both":
                echo.hear(out.tokens, grid)
            elif plan.guidance_echo:
                out = replace(out, tokens=echo.added(out.tokens, grid, plan.guidance_echo))
            logits = _logits(call, out, settings, scale, settings.temperature[si], run, si)
            timer.mark("head", si)
            bits = _sample(logits, draws, plan, settings, grid, images)
            timer.mark("sampling", si)
            gain = gain_of(gains, si)
            if si < len(forced_bits):
                codes = codes_from_bits(forced_bits[si], gain)
            elif plan.restore_codes is not None and plan.keep is not None:
                amplitude = model.config.codebook_dim**-0.5 if gain is None else gain
                kept_codes = (bits.float() * 2 - 1) * amplitude
                dense = plan.restore_codes(kept_codes, plan.keep, view)
                codes = tokens_to_bits(dense, latent_grids[si], patchify).movedim(-1, 1)
                timer.mark("restore", si)
            else:
                codes = codes_from_bits(tokens_to_bits(bits, latent_grids[si], patchify), gain)
            latent = latent + resize(codes, latent_grids[-1])
            timer.mark("next_input", si)
            if "codes" in run.events:
                run.after("codes", si, -1, None, latent)
            if on_scale_end is not None:
                on_scale_end(ScaleEnd(si, grid, logits, bits, codes, latent))
            if plan.stop_after:
                break
    return latent


def _embed(call: CallState, latent: Tensor, si: int, latent_grids: tuple[Grid, ...]) -> Tensor:
    """Input of scale ``si``, ``(b, N, C)``, for the rows that still run."""
    model = call.model
    if si == 0:
        return model.embed_start(call.active(call.text.sos))
    inputs = next_scale_input(latent, latent_grids[si], model.config.patchify)
    return model.embed_tokens(inputs, si, copies=2 if call.rows == "both" else 1)


def _logits(
    call: CallState,
    out: StackOutput,
    settings: SamplingSettings,
    scale: float,
    temperature: float,
    policy: PolicyRun,
    si: int,
) -> Tensor:
    """``(T, D, 2)`` logits of the picture's tokens, after temperature and guidance."""
    tokens, images = out.tokens, call.images
    combine = settings.guidance.logits and scale != 1 and out.rows == "both"
    listening = "logits" in policy.events
    if out.rows == "both" and not combine and not (listening and settings.guidance.logits):
        tokens = tokens.slice_rows(0, images)
    modulation = call.head_modulation(tokens.rows)
    if tokens.uniform:
        x = tokens.x.unflatten(0, (tokens.rows, tokens.max_seqlen))
        logits = call.model.modulated_logits(x, modulation[:, None]).flatten(0, 1)
    else:
        spread = modulation[tokens.row_ids()]
        logits = call.model.modulated_logits(tokens.x[None], spread[None])[0]
    if listening:
        halves = (logits, None) if tokens.rows == images else logits.chunk(2)
        policy.after("logits", si, -1, None, halves)
    logits = logits.mul(1 / temperature)
    if tokens.rows == images:
        return logits
    cond, uncond = logits.chunk(2)
    return guide(cond, uncond, scale) if combine else cond


def _sample(
    logits: Tensor,
    draws: Tensor,
    plan: ScalePlan,
    settings: SamplingSettings,
    grid: Grid,
    images: int,
) -> Int64[Tensor, "..."]:
    """Bits: dense ``(B, L, D)``, or ``(T, D)`` of the kept tokens when the plan restores codes.

    Every position has its own draws, taken whether or not it is computed.
    """
    total, width = logits.shape[0], logits.shape[1]
    positions = grid[0] * grid[1]
    logits = truncate(logits, settings.top_k, settings.top_p)
    if plan.restore_codes is not None and plan.keep is not None:
        kept = pack(draws.view(images, positions, 2 * width), plan.keep)
        chosen = kept.x.view(1, total * width, 2)
        return sample_bits(logits.view(1, -1, 2), chosen).view(total, width)
    flat = logits.view(images, positions * width, 2)
    return sample_bits(flat, draws).view(images, positions, width)
