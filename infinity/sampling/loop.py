"""The scale loop: from text conditioning to the summed latent (spec: infinity-transformer §7.2)."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from infinity.policy import (
    Decide,
    PolicyRequest,
    PolicyRun,
    PruningPolicy,
    ScalePlan,
    ScaleView,
    wait_for,
)
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


OnScaleEnd = Callable[[ScaleEnd], None]


class ScaleLoop:
    """One generation call, carried out a scale at a time.

    A loop can be forked between two scales, and of its forks each can go on as long as no other has
    gone on since: they share the memory of the caches. This holds for draws that a scale's number
    decides (:class:`~infinity.sampling.noise.PerImageNoise`) and for runs that keep to what
    :class:`~infinity.policy.PruningPolicy` asks of those that decide.

    Args:
        text: B rows, or 2B (conditional first) when ``settings.guided``.
        images: B.
        gains: code amplitude per scale of tokenizers that have them.
        decode: given to policies that look at early pictures.
        forced_bits: tokenizer-layout bits ``(B, Hv_s, Wv_s, d)`` that replace the sampled ones at
            the first scales.
        on_scale_end: called after every executed scale.
        timer: hears the end of every stage.
        fused: the blocks in fused form; None runs them as ``block.py`` reads.
        memory: where the caches of fused blocks live.

    Attributes:
        si: the scale that comes next.
        latent: summed codes so far, ``(B, d, Hv, Wv)`` fp32.
        ended: whether no scale comes next.
    """

    @torch.inference_mode()
    def __init__(
        self,
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
        on_scale_end: OnScaleEnd | None = None,
        timer: StageTimer = NO_TIMER,
        fused: FusedBlocks | None = None,
        memory: CacheMemory | None = None,
    ) -> None:
        self.model, self.schedule, self.settings, self.noise = model, schedule, settings, noise
        self.gains, self.decode, self.forced_bits = gains, decode, forced_bits
        self.on_scale_end, self.decide = on_scale_end, wait_for
        self.latent_grids = schedule.latent_grids(model.config.patchify)
        self.run = policy.start(_request(model, text, schedule, settings, images))
        self.call = CallState(
            model,
            text,
            schedule,
            images=images,
            guidance=settings.guidance,
            cached_tokens=self.run.cached_tokens,
            attention=attention,
            timer=timer,
            fused=fused,
            memory=memory,
        )
        self.latent: Float[Tensor, "images d hv wv"] = torch.zeros(
            images, model.config.codebook_dim, *self.latent_grids[-1], device=model.device
        )
        self.codes: Tensor | None = None
        self.echo = GuidanceEcho()
        self.si, self.ended = 0, False
        timer.mark("conditioning")

    def fork(
        self,
        *,
        decide: Decide,
        on_scale_end: OnScaleEnd | None,
        timer: StageTimer,
    ) -> "ScaleLoop":
        """Another loop at the same point of the call, with its own answers and listeners."""
        other = copy.copy(self)
        other.run, other.echo = copy.copy(self.run), copy.copy(self.echo)
        other.call = self.call.fork(timer)
        other.decide, other.on_scale_end = decide, on_scale_end
        return other

    def finish(self) -> Float[Tensor, "images d hv wv"]:
        """Summed codes of all executed scales, fp32.

        Raises:
            ValueError: a plan that contradicts itself or the settings.
        """
        while not self.ended:
            self.advance()
        return self.latent

    @torch.inference_mode()
    def advance(self) -> None:
        """Carries out the next scale.

        Raises:
            ValueError: the call has ended, or a plan contradicts itself or the settings.
        """
        if self.ended:
            raise ValueError("the call has ended: no scale comes next")
        si, settings, call, run = self.si, self.settings, self.call, self.run
        timer, grid, config = call.timer, self.schedule.grids[si], self.model.config
        if call.rows == "both" and not settings.guided_from(si):
            call.keep_half("cond")
        timer.mark("pack", si)
        x = _embed(call, self.latent, si, self.latent_grids)
        view = ScaleView(self.latent, self.codes, x, grid, call.rows, self.decode, self.decide)
        timer.mark("next_input", si)
        plan = run.plan_scale(si, view)
        timer.mark("select", si)
        draws = self.noise.exponential(si, grid[0] * grid[1] * config.token_bits)
        timer.mark("sampling", si)
        self.si = si + 1
        self.ended = self.si == len(self.schedule) or (plan.run and plan.stop_after)
        if not plan.run:
            return
        if plan.rows not in ("both", call.rows):
            call.keep_half(plan.rows)
            x = call.active(x)
        scale = settings.guidance_scale[si] if plan.guidance is None else plan.guidance
        out = BlockStack(call).run(si, x, plan, run, scale, self.ended)
        if out.rows == "both":
            self.echo.hear(out.tokens, grid)
        elif plan.guidance_echo:
            out = replace(out, tokens=self.echo.added(out.tokens, grid, plan.guidance_echo))
        raw = _logits(call, out, settings, scale, run, si)
        timer.mark("head", si)
        guided = scale if _combines(out, settings, scale) else None
        how = Draw(settings.temperature[si], guided, settings.top_k, settings.top_p)
        bits, logits = _sample(raw, draws, how, plan, grid)
        timer.mark("sampling", si)
        codes = self._codes(si, bits, plan, view)
        self.codes, self.latent = codes, self.latent + resize(codes, self.latent_grids[-1])
        timer.mark("next_input", si)
        if "codes" in run.events:
            run.after("codes", si, -1, None, self.latent)
        if self.on_scale_end is not None:
            self.on_scale_end(ScaleEnd(si, grid, logits, bits, codes, self.latent))

    def _codes(
        self, si: int, bits: Tensor, plan: ScalePlan, view: ScaleView
    ) -> Float[Tensor, "images d hk wk"]:
        """What the bits of scale ``si`` stand for, or the bits that it is forced to have."""
        gain, config, grid = gain_of(self.gains, si), self.model.config, self.latent_grids[si]
        if si < len(self.forced_bits):
            return codes_from_bits(self.forced_bits[si], gain)
        if plan.restore_codes is None or plan.keep is None:
            return codes_from_bits(tokens_to_bits(bits, grid, config.patchify), gain)
        amplitude = config.codebook_dim**-0.5 if gain is None else gain
        dense = plan.restore_codes((bits.float() * 2 - 1) * amplitude, plan.keep, view)
        self.call.timer.mark("restore", si)
        return tokens_to_bits(dense, grid, config.patchify).movedim(-1, 1)


def _request(
    model: InfinityTransformer,
    text: TextConditioning,
    schedule: ScaleSchedule,
    settings: SamplingSettings,
    images: int,
) -> PolicyRequest:
    return PolicyRequest(
        schedule=schedule,
        images=images,
        guidance_rows=len(text.lengths) // images,
        layers=model.config.depth,
        width=model.config.width,
        heads=model.config.heads,
        patchify=model.config.patchify,
        device_type=model.device.type,
        guided=tuple(settings.guided_from(si) for si in range(len(schedule))),
        rows_live=settings.guidance.logits,
    )


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
