"""A generation call recorded once, one CUDA graph per scale, and replayed for other prompts and
seeds.

All decisions of a recorded call are taken on the host while it is recorded, so that only calls of
equal :class:`CallKey` may share a recording; prompts and seeds are copied into the tensors that the
graphs read. All recordings share one memory pool: they never run at the same time, and nothing that
a replay leaves behind is read by another.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from infinity.policy import PruningPolicy
from infinity.sampling.loop import Around, ScaleEnd
from infinity.sampling.noise import PerImageNoise
from infinity.sampling.settings import SamplingSettings
from infinity.schedule import ScaleSchedule
from infinity.text.base import TextFeatures
from infinity.timing import RecordedClock, StageClock, StageTimer
from infinity.transformer.fused import text_room
from infinity.upload import upload


@dataclass(frozen=True)
class CallKey:
    """Everything that a recorded call holds fixed."""

    policy: PruningPolicy
    schedule: ScaleSchedule
    settings: SamplingSettings
    images: int
    rows: int
    room: int
    longest: int
    attention: str
    listening: bool
    staged: bool


@dataclass(frozen=True)
class Prompts:
    """Features of all rows of a call in memory of a rounded size, on the device.

    Prompts of similar length then share shapes, and with them recordings and roundings.

    Attributes:
        rows: ``(room, width)``; those past the last boundary stand for nothing.
        cu_seqlens: row boundaries.
        lengths: rows per prompt, of the first call.
        longest: no prompt of calls that share the memory is longer.
    """

    rows: Float[Tensor, "room width"]
    cu_seqlens: Int32[Tensor, " b1"]
    lengths: tuple[int, ...]
    longest: int

    @staticmethod
    def of(text: TextFeatures, device: torch.device) -> "Prompts":
        """``text`` in memory of its own."""
        room = text_room(len(text.rows), len(text))
        rows = torch.zeros(room, text.rows.shape[1], device=device)
        rows[: len(text.rows)].copy_(text.rows)
        longest = text_room(max(text.lengths), 1)
        return Prompts(rows, upload(text.boundaries(), device), text.lengths, longest)

    def replace(self, text: TextFeatures) -> None:
        """Puts other prompts of similar length into the memory."""
        self.rows[: len(text.rows)].copy_(text.rows)
        self.cu_seqlens.copy_(upload(text.boundaries(), self.cu_seqlens.device))


Generate = Callable[
    [Prompts, PerImageNoise, Around | None, Callable[[ScaleEnd], None] | None, StageTimer], Tensor
]
"""``(prompts, noise, around, on_scale_end, timer) → latent``: a call with everything else fixed."""


class Recording:
    """One call as graphs.

    Args:
        generate: the call.
        text, noise: of the first prompts.
        timer: of the call that is recorded.
        listening: keep what callbacks see.
        pool: memory of the graphs.
        stream: to record on, idle.
    """

    def __init__(
        self,
        generate: Generate,
        text: TextFeatures,
        noise: PerImageNoise,
        timer: StageTimer,
        *,
        listening: bool,
        pool: tuple[int, int],
        stream: torch.cuda.Stream,
    ) -> None:
        self._prompts = Prompts.of(text, noise.seeds.device)
        self._noise = copy.copy(noise)
        self._noise.seeds = noise.seeds.clone()
        self._graphs: list[tuple[int, torch.cuda.CUDAGraph]] = []
        self._clock = RecordedClock(noise.seeds.device) if _staged(timer) else None
        self._ends: dict[int, ScaleEnd] = {}

        @contextlib.contextmanager
        def around(si: int) -> Iterator[None]:
            graph = torch.cuda.CUDAGraph()
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                yield
            except BaseException:
                with contextlib.suppress(RuntimeError):
                    graph.capture_end()
                raise
            graph.capture_end()
            self._graphs.append((si, graph))

        def keep(end: ScaleEnd) -> None:
            self._ends[end.scale] = end

        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            heard, clock = keep if listening else None, self._clock or timer
            self._latent = generate(self._prompts, self._noise, around, heard, clock)
        torch.cuda.current_stream().wait_stream(stream)

    def __call__(
        self,
        text: TextFeatures,
        noise: PerImageNoise,
        on_scale_end: Callable[[ScaleEnd], None] | None,
        timer: StageTimer,
    ) -> Tensor:
        """The latent of other prompts and seeds."""
        self._prompts.replace(text)
        self._noise.seeds.copy_(noise.seeds)
        if self._clock is not None:
            self._clock.start()
        for si, graph in self._graphs:
            graph.replay()
            if self._clock is None:
                timer.mark("conditioning" if si < 0 else "scales", si if si >= 0 else None)
            if on_scale_end is not None and si in self._ends:
                end = self._ends[si]
                parts = ("logits", "bits", "codes", "latent")
                on_scale_end(replace(end, **{name: getattr(end, name).clone() for name in parts}))
        if self._clock is not None and isinstance(timer, StageClock):
            timer.adopt(self._clock.milliseconds())
        return self._latent.clone()


def _staged(timer: StageTimer) -> bool:
    return isinstance(timer, StageClock) and timer.inside


@dataclass
class KeptMemory:
    """Memory that outlives a call, by name; asking for more than there is makes it anew."""

    device: torch.device
    grown: Callable[[], None] = lambda: None
    _pieces: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A finite tensor of ``shape``; what it gives under a name replaces what it gave before."""
        count = torch.Size(shape).numel()
        have = self._pieces.get(name)
        if have is None or have.numel() < count or have.dtype != dtype:
            if torch.cuda.is_current_stream_capturing():
                raise RuntimeError(f"no memory was set aside for {name}")
            self._pieces.pop(name, None)
            del have
            self.grown()
            self._pieces[name] = torch.zeros(count, dtype=dtype, device=self.device)
        return self._pieces[name][:count].view(shape)
