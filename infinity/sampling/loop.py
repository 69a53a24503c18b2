"""The scale loop: from text conditioning to the summed latent (spec: infinity-transformer §7.2)."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from infinity.policy import PolicyRequest, PolicyRun, PruningPolicy, ScalePlan, ScaleView
from infinity.sampling.bits import Draw, draw_bits
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
            raw = _logits(call, out, settings, scale, run, si)
            timer.mark("head", si)
            guided = scale if _combines(out, settings, scale) else None
            how = Draw(settings.temperature[si], guided, settings.top_k, settings.top_p)
            bits, logits = _sample(raw, draws, how, plan, grid)
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
    policy: PolicyRun,
    si: int,
) -> Float[Tensor, "t d 2"]:
    """Logits as the head gives them: of all rows that are to be combined or that someone listens
    to, else of the picture's.
    """
    tokens, images, model = out.tokens, call.images, call.model
    listening = "logits" in policy.events
    heard = listening and settings.guidance.logits
    if out.rows == "both" and not heard and not _combines(out, settings, scale):
        tokens = tokens.slice_rows(0, images)
    modulation = call.head_modulation(tokens.rows)
    if tokens.uniform:
        x = tokens.x.unflatten(0, (tokens.rows, tokens.max_seqlen))
        logits = model.modulated_logits(x, modulation[:, None]).flatten(0, 1)
    else:
        spread = modulation[tokens.row_ids()]
        logits = model.modulated_logits(tokens.x[None], spread[None])[0]
    if listening:
        halves = (logits, None) if tokens.rows == images else logits.chunk(2)
        policy.after("logits", si, -1, None, halves)
    return logits


def _combines(out: StackOutput, settings: SamplingSettings, scale: float) -> bool:
    """Whether the halves are combined in the logits."""
    return settings.guidance.logits and scale != 1 and out.rows == "both"


def _sample(
    raw: Float[Tensor, "rows d 2"], draws: Tensor, how: Draw, plan: ScalePlan, grid: Grid
) -> tuple[Int64[Tensor, "..."], Float[Tensor, "t d 2"]]:
    """Bits, dense ``(B, L, D)``, or ``(T, D)`` of the kept tokens when the plan restores codes; and
    the logits after temperature and guidance.

    Every position has its own draws, taken whether or not it is computed.
    """
    images, width, positions = len(draws), raw.shape[1], grid[0] * grid[1]
    if plan.restore_codes is not None and plan.keep is not None:
        kept = pack(draws.view(images, positions, 2 * width), plan.keep)
        return draw_bits(raw, kept.x.view(1, -1, 2), how)
    bits, logits = draw_bits(raw, draws, how)
    return bits.view(images, positions, width), logits
