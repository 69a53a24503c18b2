"""A generation call recorded once, one CUDA graph per scale, and replayed for other prompts and
seeds.

All decisions of a recorded call are taken on the host while it is recorded, so that only calls of
equal :class:`CallKey` may share a recording; prompts and seeds are copied into the tensors that the
graphs read. Where a policy decides by what has been drawn, a recording branches: up to the question
every call is alike, and each answer has its own continuation.

All recordings share one memory pool: they never run at the same time, and nothing that a replay
leaves behind is read by another.
"""

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from infinity.engine.answers import Answer, Answers, UndecidedError, undecided
from infinity.engine.prompts import Prompts
from infinity.policy import PruningPolicy, wait_for
from infinity.sampling.loop import OnScaleEnd, ScaleEnd, ScaleLoop
from infinity.sampling.noise import PerImageNoise
from infinity.sampling.settings import SamplingSettings
from infinity.schedule import ScaleSchedule
from infinity.text.base import TextFeatures
from infinity.timing import NO_TIMER, RecordedClock, StageClock, StageTimer

logger = logging.getLogger(__name__)

_MOST_STRETCHES = 64
_MOST_SEEN = 256


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
    decode: Callable[[Tensor], Tensor] | None
    listening: bool
    staged: bool


Begin = Callable[[Prompts, PerImageNoise, OnScaleEnd | None, StageTimer], ScaleLoop]
"""``(prompts, noise, on_scale_end, timer) → loop``: a call with everything else fixed."""


@dataclass
class Stretch:
    """The graphs between two questions of a policy, or to the end of the call.

    Attributes:
        loop: as it stands after the last scale that is recorded whole, to be forked; None at the
            end of the call, so that it holds no memory.
        graphs: with their scales, in order; −1 is what comes before the first scale.
        told: what the policy has been told at the scale that ``loop`` is at.
        asked: what it wants to know next; None at the end of the call.
        latent: summed codes, at the end of the call.
        ends: what callbacks see.
        clock: of calls whose stages are told apart inside graphs.
        following: what comes after an answer.
        seen: answers without a recording.
    """

    loop: ScaleLoop | None
    graphs: list[tuple[int, torch.cuda.CUDAGraph]]
    told: tuple[Answer, ...]
    clock: RecordedClock | None
    asked: Tensor | None = None
    latent: Tensor | None = None
    ends: list[ScaleEnd] = field(default_factory=list)
    following: "dict[Answer, Stretch]" = field(default_factory=dict)
    seen: list[Answer] = field(default_factory=list)

    def replay(self, on_scale_end: OnScaleEnd | None, timer: StageTimer) -> None:
        """Runs the graphs."""
        ends = {end.scale: end for end in self.ends}
        if self.clock is not None:
            self.clock.start()
        for si, graph in self.graphs:
            graph.replay()
            if self.clock is None:
                timer.mark("conditioning" if si < 0 else "scales", si if si >= 0 else None)
            if on_scale_end is not None and si in ends:
                parts = ("logits", "bits", "codes", "latent")
                copies = {name: getattr(ends[si], name).clone() for name in parts}
                on_scale_end(replace(ends[si], **copies))
        if self.clock is not None and isinstance(timer, StageClock):
            timer.adopt(self.clock.milliseconds())


@contextmanager
def _recording_on(stream: torch.cuda.Stream) -> Iterator[None]:
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


class Recording:
    """One call as graphs.

    Args:
        begin: the call.
        text, noise: of the first prompts.
        timer: of the call that is recorded.
        policy: named where the log speaks of the recording.
        listening: keep what callbacks see.
        pool: memory of the graphs.
        stream: to record on, idle.

    Raises:
        RuntimeError: the call does something that cannot be recorded.
    """

    def __init__(
        self,
        begin: Begin,
        text: TextFeatures,
        noise: PerImageNoise,
        timer: StageTimer,
        *,
        policy: str,
        listening: bool,
        pool: tuple[int, int],
        stream: torch.cuda.Stream,
    ) -> None:
        self._policy = policy
        self._prompts = Prompts.of(text, noise.seeds.device)
        self._noise = copy.copy(noise)
        self._noise.seeds = noise.seeds.clone()
        self._pool, self._stream, self._listening = pool, stream, listening
        self._staged = isinstance(timer, StageClock) and timer.inside
        self._stretches, self._grows = 1, True
        clock = self._clock()
        started: list[ScaleLoop] = []

        def start() -> None:
            started.append(begin(self._prompts, self._noise, None, clock or NO_TIMER))

        with _recording_on(stream):
            graph, _ = self._captured(start, -1, clock)
            self._first = Stretch(started[0], [(-1, graph)], (), clock)
            self._extend(self._first)

    def __call__(
        self,
        text: TextFeatures,
        noise: PerImageNoise,
        on_scale_end: OnScaleEnd | None,
        timer: StageTimer,
    ) -> Tensor:
        """The latent of other prompts and seeds."""
        self._prompts.replace(text)
        self._noise.seeds.copy_(noise.seeds)
        stretch = self._first
        stretch.replay(on_scale_end, timer)
        while stretch.latent is None:
            assert stretch.asked is not None
            answer = wait_for(stretch.asked)
            if self._staged:
                timer.mark("select", stretch.graphs[-1][0])
            following = self._after(stretch, answer)
            if following is None:
                return self._go_on(stretch, answer, on_scale_end, timer)
            stretch = following
            stretch.replay(on_scale_end, timer)
        return stretch.latent.clone()

    def _go_on(
        self,
        stretch: Stretch,
        answer: Answer,
        on_scale_end: OnScaleEnd | None,
        timer: StageTimer,
    ) -> Tensor:
        """The latent of the call that has just come to a question, without further recordings."""
        assert stretch.loop is not None
        loop = stretch.loop.fork(
            decide=Answers((*stretch.told, answer), wait_for),
            on_scale_end=on_scale_end,
            timer=timer if self._staged else NO_TIMER,
        )
        while not loop.ended:
            si = loop.si
            loop.advance()
            if not self._staged:
                timer.mark("scales", si)
        return loop.latent.clone()

    def _after(self, stretch: Stretch, answer: Answer) -> Stretch | None:
        """What follows an answer, recorded when it is given for the second time; else None."""
        if answer in stretch.following:
            return stretch.following[answer]
        if not self._grows:
            return None
        if answer not in stretch.seen:
            stretch.seen = [*stretch.seen[1 - _MOST_SEEN :], answer]
            return None
        following = Stretch(stretch.loop, [], (*stretch.told, answer), self._clock())
        try:
            with _recording_on(self._stream):
                self._extend(following)
        except RuntimeError as error:
            # What cannot be recorded once, such as rows of unequal length, will not be again.
            self._stop_growing(str(error).splitlines()[0])
            return None
        self._stretches += 1
        stretch.following[answer] = following
        if self._stretches == _MOST_STRETCHES:
            self._stop_growing(f"there are {_MOST_STRETCHES} stretches")
        return following

    def _stop_growing(self, reason: str) -> None:
        self._grows = False
        logger.warning(
            "engine: no further answers of policy %s are recorded in calls like this one, which go "
            "on eagerly from there: %s",
            self._policy,
            reason,
        )

    def _extend(self, stretch: Stretch) -> None:
        """Records scales until the policy asks what it has not been told, or the call ends."""
        heard = stretch.ends.append if self._listening else None
        while stretch.loop is not None and stretch.asked is None:
            loop = stretch.loop.fork(
                decide=Answers(stretch.told, undecided),
                on_scale_end=heard,
                timer=stretch.clock or NO_TIMER,
            )
            si = loop.si
            graph, stretch.asked = self._captured(loop.advance, si, stretch.clock)
            stretch.graphs.append((si, graph))
            if stretch.asked is None:
                stretch.loop, stretch.told = loop, ()
                if loop.ended:
                    stretch.loop, stretch.latent = None, loop.latent

    def _captured(
        self, work: Callable[[], None], si: int, clock: RecordedClock | None
    ) -> tuple[torch.cuda.CUDAGraph, Tensor | None]:
        """``work`` as a graph, up to what it asks, if it asks."""
        graph, asked = torch.cuda.CUDAGraph(), None
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            work()
        except UndecidedError as question:
            asked = question.values
            if clock is not None:
                clock.mark("select", si)
        except BaseException:
            with suppress(RuntimeError):
                graph.capture_end()
            raise
        graph.capture_end()
        return graph, asked

    def _clock(self) -> RecordedClock | None:
        return RecordedClock(self._noise.seeds.device) if self._staged else None
