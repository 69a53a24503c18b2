"""The scale loop: from text conditioning to the summed latent (spec: infinity-transformer §7.2)."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from infinity.policy import PolicyRequest, PolicyRun, PruningPolicy, Rows, ScalePlan, ScaleView
from infinity.sampling.bits import guide, sample_bits, truncate
from infinity.sampling.echo import GuidanceEcho
from infinity.sampling.noise import NoiseSource
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
from infinity.transformer.fused import FusedBlocks
from infinity.transformer.model import InfinityTransformer, TextConditioning
from infinity.transformer.stack import BlockStack, CacheMemory, Guidance, StackOutput

Around = Callable[[int], AbstractContextManager]
"""``scale → context`` in which everything of that scale happens; −1 is what comes before the first.
"""


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How to sample, resolved: one value per scale where scales may differ.

    Attributes:
        guidance_scale: per scale; 1 is off.
        temperature: per scale, > 0.
        top_k, top_p: see :func:`infinity.sampling.bits.truncate`.
        guidance: where the guidance halves meet.
    """

    guidance_scale: tuple[float, ...]
    temperature: tuple[float, ...]
    top_k: int
    top_p: float
    guidance: Guidance

    @property
    def guided(self) -> bool:
        return any(scale != 1 for scale in self.guidance_scale)

    def guided_from(self, si: int) -> bool:
        """Whether the unconditional half can still matter at scale ``si`` or later."""
        return any(scale != 1 for scale in self.guidance_scale[si:])


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
        schedule,
        images,
        len(text.lengths) // images,
        model.config.depth,
        model.config.width,
        model.config.heads,
        patchify,
        model.device.type,
        tuple(settings.guided_from(si) for si in range(len(schedule))),
        settings.guidance.logits,
    )
    with around(-1):
        run = policy.start(request)
        stack = BlockStack(
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
    codes, echo = None, GuidanceEcho()
    timer.mark("conditioning")
    for si, grid in enumerate(schedule.grids):
        with around(si):
            if stack.rows == "both" and not settings.guided_from(si):
                stack.drop_rows("cond")
            timer.mark("pack", si)
            view = ScaleView(
                latent, codes, _embed(stack, latent, si, latent_grids), grid, stack.rows, decode
            )
            timer.mark("next_input", si)
            plan = run.plan_scale(si, view)
            timer.mark("select", si)
            draws = noise.exponential(si, grid[0] * grid[1] * model.config.token_bits)
            timer.mark("sampling", si)
            if not plan.run:
                continue
            x = view.x
            if plan.rows != "both" and plan.rows != stack.rows:
                x = _rows_of(x, stack.rows, plan.rows, images)
                stack.drop_rows(plan.rows)
            scale = settings.guidance_scale[si] if plan.guidance is None else plan.guidance
            last = si + 1 == len(schedule) or plan.stop_after
            out = stack.run(si, x, plan, run, scale, last)
            if out.rows == "both":
                echo.hear(out.tokens, grid)
            elif plan.guidance_echo:
                out = replace(out, tokens=echo.added(out.tokens, grid, plan.guidance_echo))
            logits = _logits(stack, out, settings, scale, settings.temperature[si], run, si)
            timer.mark("head", si)
            bits = _sample(logits, draws, plan, settings, grid, images)
            timer.mark("sampling", si)
            gain = gain_of(gains, si)
            if si < len(forced_bits):
                codes = codes_from_bits(forced_bits[si], gain)
            elif plan.restore_codes is not None and plan.keep is not None:
                signs = bits.float() * 2 - 1
                amplitude = model.config.codebook_dim**-0.5 if gain is None else gain
                dense = plan.restore_codes(signs * amplitude, plan.keep, view)
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


def _embed(stack: BlockStack, latent: Tensor, si: int, latent_grids: tuple[Grid, ...]) -> Tensor:
    model = stack.model
    if si == 0:
        return model.embed_start(stack.active(stack.text.sos))
    x = model.embed_tokens(next_scale_input(latent, latent_grids[si], model.config.patchify), si)
    return x.repeat(2, 1, 1) if stack.rows == "both" else x


def _rows_of(x: Tensor, have: Rows, want: Rows, images: int) -> Tensor:
    if have != "both":
        raise ValueError(f"rows {want!r} asked for, but only {have!r} rows are left")
    return x[:images] if want == "cond" else x[images:]


def _logits(
    stack: BlockStack,
    out: StackOutput,
    settings: SamplingSettings,
    scale: float,
    temperature: float,
    policy: PolicyRun,
    si: int,
) -> Tensor:
    """``(T, D, 2)`` logits of the picture's tokens, after temperature and guidance."""
    tokens, images = out.tokens, stack.images
    combine = settings.guidance.logits and scale != 1 and out.rows == "both"
    listening = "logits" in policy.events
    if out.rows == "both" and not combine and not (listening and settings.guidance.logits):
        tokens = tokens.slice_rows(0, images)
    condition = stack.active(stack.text.sos)[: tokens.rows]
    if tokens.uniform:
        x = tokens.x.unflatten(0, (tokens.rows, tokens.max_seqlen))
        logits = stack.model.logits(x, condition[:, None]).flatten(0, 1)
    else:
        logits = stack.model.logits(tokens.x[None], condition[tokens.row_ids()][None])[0]
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
