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
from torch import Tensor

from infinity.policy import PruningPolicy
from infinity.sampling.loop import Around, ScaleEnd
from infinity.sampling.noise import PerImageNoise
from infinity.sampling.settings import SamplingSettings
from infinity.schedule import ScaleSchedule
from infinity.timing import StageTimer
from infinity.transformer.fused import text_room
from infinity.transformer.model import TextConditioning


@dataclass(frozen=True)
class CallKey:
    """Everything that a recorded call holds fixed."""

    policy: PruningPolicy
    schedule: ScaleSchedule
    settings: SamplingSettings
    images: int
    rows: int
    room: int
    attention: str
    listening: bool


Generate = Callable[
    [TextConditioning, PerImageNoise, Around, Callable[[ScaleEnd], None] | None], Tensor
]
"""``(text, noise, around, on_scale_end) → latent``: a call with everything else fixed."""


class Recording:
    """One call as graphs.

    Args:
        generate: the call.
        text, noise: of the first prompts.
        listening: keep what callbacks see.
        pool: memory of the graphs.
        stream: to record on, idle.
    """

    def __init__(
        self,
        generate: Generate,
        text: TextConditioning,
        noise: PerImageNoise,
        *,
        listening: bool,
        pool: tuple[int, int],
        stream: torch.cuda.Stream,
    ) -> None:
        room = text_room(len(text.context), len(text.lengths))
        context = text.context.new_zeros((room, text.context.shape[1]))
        self._text = replace(
            text,
            sos=text.sos.clone(),
            shared=text.shared.clone(),
            cu_seqlens=text.cu_seqlens.clone(),
            context=context,
        )
        self._noise = copy.copy(noise)
        self._noise.seeds = noise.seeds.clone()
        self._graphs: list[tuple[int, torch.cuda.CUDAGraph]] = []
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
            self._latent = generate(self._text, self._noise, around, keep if listening else None)
        torch.cuda.current_stream().wait_stream(stream)

    def __call__(
        self,
        text: TextConditioning,
        noise: PerImageNoise,
        on_scale_end: Callable[[ScaleEnd], None] | None,
        timer: StageTimer,
    ) -> Tensor:
        """The latent of other prompts and seeds."""
        self._text.sos.copy_(text.sos)
        self._text.shared.copy_(text.shared)
        self._text.cu_seqlens.copy_(text.cu_seqlens)
        self._text.context[: len(text.context)].copy_(text.context)
        self._noise.seeds.copy_(noise.seeds)
        for si, graph in self._graphs:
            graph.replay()
            if si < 0:
                timer.mark("conditioning")
                continue
            timer.mark("scales", si)
            if on_scale_end is not None and si in self._ends:
                end = self._ends[si]
                parts = ("logits", "bits", "codes", "latent")
                on_scale_end(replace(end, **{name: getattr(end, name).clone() for name in parts}))
        return self._latent.clone()


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
