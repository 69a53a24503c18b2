"""How a generation call is carried out: plain modules, fused kernels, or recorded CUDA graphs."""

import logging
from collections.abc import Callable, Sequence
from typing import get_args

import torch
from torch import Tensor

from infinity.config import EngineMode
from infinity.engine.memory import KeptMemory
from infinity.engine.prompts import Prompts
from infinity.engine.recording import Begin, CallKey, Recording
from infinity.errors import UserError
from infinity.ops.fused import why_not
from infinity.policy import PruningPolicy
from infinity.sampling.loop import OnScaleEnd, ScaleLoop
from infinity.sampling.noise import NoiseSource, PerImageNoise
from infinity.sampling.settings import SamplingSettings
from infinity.schedule import ScaleSchedule
from infinity.text.base import TextFeatures
from infinity.timing import NO_TIMER, StageClock, StageTimer
from infinity.tokenizer.autoencoder import Decoder
from infinity.tokenizer.fused import FusedDecoder
from infinity.transformer.fused import FusedBlocks, text_room
from infinity.transformer.model import InfinityTransformer, TextConditioning

logger = logging.getLogger(__name__)


def _why_plain(model: InfinityTransformer) -> str | None:
    """None if the fused kernels can run ``model``, else the reason why not."""
    if any(type(parameter.data) is not Tensor for parameter in model.parameters()):
        return "the kernels read plain matrices, not quantised ones"
    return why_not(model.device)


def refuse_mode(mode: EngineMode, device: torch.device) -> None:
    """Makes sure that a mode can run on a device.

    Raises:
        UserError: it cannot, or there is no such mode.
    """
    if mode not in get_args(EngineMode):
        raise UserError(f"engine is {mode!r}; allowed: {', '.join(get_args(EngineMode))}")
    reason = why_not(device)
    if mode in ("eager", "graphs") and reason is not None:
        raise UserError(f"engine is {mode}, but {reason}; allowed: auto or plain")
    if mode == "graphs" and device.type != "cuda":
        raise UserError("engine is graphs, which needs a CUDA device; allowed: auto or plain")


_MOST_RECORDINGS = 32
_MOST_SEEN = 64


class Engine:
    """Carries out calls on one model.

    Args:
        model: its parameters must stay where they are.
        mode: see :data:`EngineMode`.
        fp8: the blocks' large matrix products in fp8.

    Raises:
        UserError: the mode, or fp8, does not run on the model's device.
    """

    def __init__(
        self, model: InfinityTransformer, *, mode: EngineMode = "auto", fp8: bool = False
    ) -> None:
        self.asked = (model, mode, fp8)
        self.model, device = model, model.device
        refuse_mode(mode, device)
        reason = _why_plain(model)
        if mode in ("eager", "graphs") and reason is not None:
            raise UserError(f"engine is {mode}, but {reason}; allowed: auto or plain")
        if mode == "auto":
            mode = "graphs" if reason is None and device.type == "cuda" else "plain"
            if reason is not None:
                logger.info("engine: plain, because %s", reason)
        if fp8 and (
            mode == "plain"
            or device.type != "cuda"
            or torch.cuda.get_device_capability(device) < (9, 0)
        ):
            raise UserError(
                "fp8 needs engine eager or graphs on a GPU of compute capability 9.0; "
                "allowed here: fp8 off"
            )
        self.mode = mode
        self._fused = None if mode == "plain" else FusedBlocks(model, fp8=fp8)
        self._recordings: list[tuple[CallKey, Recording]] = []
        self._seen: list[CallKey] = []
        self._refused: list[CallKey] = []
        self._decoder: tuple[Decoder, FusedDecoder] | None = None
        self._memory = None
        if mode == "graphs":
            self._memory = KeptMemory(device, self._recordings.clear)
            self._stream = torch.cuda.Stream(device)

    @torch.inference_mode()
    def latents(
        self,
        text: TextFeatures,
        schedule: ScaleSchedule,
        settings: SamplingSettings,
        noise: NoiseSource,
        policy: PruningPolicy,
        *,
        images: int,
        gains: Tensor | None = None,
        decode: Callable[[Tensor], Tensor] | None = None,
        forced_bits: Sequence[Tensor] = (),
        attention: str = "auto",
        on_scale_end: OnScaleEnd | None = None,
        timer: StageTimer = NO_TIMER,
    ) -> Tensor:
        """Summed codes; arguments as of :class:`~infinity.sampling.loop.ScaleLoop`.

        Calls with ``forced_bits`` are never recorded.

        Args:
            text: features of all rows, conditional half first.
        """

        def begin(
            prompts: Prompts | None,
            noise: NoiseSource,
            on_scale_end: OnScaleEnd | None,
            timer: StageTimer,
        ) -> ScaleLoop:
            return ScaleLoop(
                self.model,
                self._conditioning(text, prompts),
                schedule,
                settings,
                noise,
                policy,
                images=images,
                gains=gains,
                decode=decode,
                forced_bits=forced_bits,
                attention=attention,
                on_scale_end=on_scale_end,
                timer=timer,
                fused=self._fused,
                memory=self._memory,
            )

        replayable = getattr(policy, "replayable", False) and isinstance(noise, PerImageNoise)
        if self.mode == "graphs" and replayable and not forced_bits:
            assert isinstance(noise, PerImageNoise)
            listening = on_scale_end is not None
            rows = len(text)
            room, longest = text_room(len(text.rows), rows), text_room(max(text.lengths), 1)
            staged = isinstance(timer, StageClock) and timer.inside
            key = CallKey(
                policy=policy,
                schedule=schedule,
                settings=settings,
                images=images,
                rows=rows,
                room=room,
                longest=longest,
                attention=attention,
                decode=decode,
                listening=listening,
                staged=staged,
            )
            recording = self._recording(key, begin, text, noise, timer)
            if recording is not None:
                return recording(text, noise, on_scale_end, timer)
        prompts = None if self.mode == "plain" else Prompts.of(text, self.model.device)
        return begin(prompts, noise, on_scale_end, timer).finish()

    def _conditioning(self, text: TextFeatures, prompts: Prompts | None) -> TextConditioning:
        """What the blocks read of ``text``; recorded and eager calls compute it alike."""
        if prompts is None:
            return self.model.condition(text)
        return self.model.condition_rows(
            prompts.rows, prompts.cu_seqlens, prompts.lengths, prompts.longest
        )

    def decoder(self, decoder: torch.nn.Module, dtype: torch.dtype) -> FusedDecoder | None:
        """``decoder`` in fused form; None where it must run as it reads."""
        if self.mode == "plain" or dtype == torch.float32 or type(decoder) is not Decoder:
            return None
        if self._decoder is None or self._decoder[0] is not decoder:
            self._decoder = decoder, FusedDecoder(decoder, dtype)
        return self._decoder[1]

    def _recording(
        self,
        key: CallKey,
        begin: Begin,
        text: TextFeatures,
        noise: PerImageNoise,
        timer: StageTimer,
    ) -> Recording | None:
        """The recording of calls like ``key``: made when one comes for the second time."""
        for index, (known, recording) in enumerate(self._recordings):
            if known == key:
                self._recordings.append(self._recordings.pop(index))
                return recording
        if key in self._refused:
            return None
        if key not in self._seen:
            # The first call compiles kernels and sets memory aside, which a recording cannot.
            self._seen = [*self._seen[-_MOST_SEEN:], key]
            return None
        del self._recordings[: max(0, len(self._recordings) + 1 - _MOST_RECORDINGS)]
        if not self._recordings:
            # The allocator drops a pool with the last recording in it, and takes it no more.
            self._pool = torch.cuda.graph_pool_handle()
        try:
            recording = Recording(
                begin,
                text,
                noise,
                timer,
                policy=key.policy.name,
                listening=key.listening,
                pool=self._pool,
                stream=self._stream,
            )
        except RuntimeError as error:
            first = str(error).splitlines()[0]
            logger.warning("engine: calls with policy %s are not recorded: %s", key.policy, first)
            self._refused = [*self._refused[-_MOST_SEEN:], key]
            return None
        self._recordings.append((key, recording))
        return recording
