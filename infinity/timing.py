"""Where the time of a generation call goes, stage by stage and scale by scale.

The generator marks the end of every stage; what happened since the mark before belongs to it, so
that the stages of a call add up to the whole call. Nobody listens by default.
"""

import time
from itertools import pairwise
from typing import Literal

import torch

Stage = Literal[
    "text",
    "conditioning",
    "next_input",
    "select",
    "pack",
    "blocks",
    "restore",
    "head",
    "sampling",
    "scales",
    "decode",
]
"""``text``: the text encoder; ``conditioning``: text projections, cross-attention keys and values,
cache allocation. Per scale: ``next_input``: the latent resampled and embedded as the scale's input,
and afterwards its codes added to the latent; ``select``: the policy's plan (scores, keep set);
``pack``: guidance rows dropped, kept tokens gathered, rotary table gathered; ``blocks``: the
transformer blocks, with what a policy prunes and restores inside them; ``restore``: the dense map
made from the kept tokens; ``head``: logits and guidance; ``sampling``: random draws and bits.
``scales``: what a call without marks inside the loop spends there; ``decode``: the image decoder.
"""


class StageTimer:
    """Hears the end of every stage; this one does nothing."""

    def mark(self, stage: Stage, scale: int | None = None) -> None:
        """All work since the mark before, or since the start, belonged to ``stage``.

        Args:
            stage: what has just ended.
            scale: index in the schedule, for stages of a scale.
        """


NO_TIMER = StageTimer()


class StageClock(StageTimer):
    """Takes times from its construction on: CUDA events on a GPU, the monotonic clock on a CPU.

    Marks never wait for the device. Inside a CUDA graph's capture they are left out: a replayed
    graph is one piece of work, which the next mark after it ends.

    Args:
        device: where the call runs.
        inside: ask for graphs that hold marks, so that stages inside them are told apart. Calls
            timed so wait for the device, and are recorded on their own.
    """

    def __init__(self, device: torch.device, *, inside: bool = False) -> None:
        self._device, self.inside = device, inside
        self._marks: list[tuple[Stage, int | None] | None] = []
        self._adopted: list[dict[tuple[Stage, int | None], float]] = []
        self._times: list[float] = []
        self._events: list[torch.cuda.Event] = []
        self._now()

    def mark(self, stage: Stage, scale: int | None = None) -> None:
        if self._device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return
        self._marks.append((stage, scale))
        self._now()

    def adopt(self, spent: dict[tuple[Stage, int | None], float]) -> None:
        """What has happened since the mark before took these times."""
        self._adopted.append(spent)
        self._marks.append(None)
        self._now()

    def milliseconds(self) -> dict[tuple[Stage, int | None], float]:
        """Time per stage and scale, in the order of their first marks; waits for the device."""
        spent: dict[tuple[Stage, int | None], float] = {}
        for mark, ms in zip(self._marks, self._intervals(), strict=True):
            if mark is not None:
                spent[mark] = spent.get(mark, 0.0) + ms
        for adopted in self._adopted:
            for mark, ms in adopted.items():
                spent[mark] = spent.get(mark, 0.0) + ms
        return spent

    def _now(self) -> None:
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self._device))
            self._events.append(event)
        else:
            self._times.append(time.perf_counter())

    def _intervals(self) -> list[float]:
        if self._device.type == "cuda":
            self._events[-1].synchronize()
            return [first.elapsed_time(second) for first, second in pairwise(self._events)]
        return [1e3 * (second - first) for first, second in pairwise(self._times)]


class RecordedClock(StageTimer):
    """Marks inside CUDA graphs, whose times every replay takes anew.

    Args:
        device: where the graphs run.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[Stage, int | None]] = []
        self._events: list[torch.cuda.Event] = [torch.cuda.Event(enable_timing=True)]

    def mark(self, stage: Stage, scale: int | None = None) -> None:
        """Becomes part of the graph that is being captured; does nothing outside."""
        if torch.cuda.is_current_stream_capturing():
            event = torch.cuda.Event(enable_timing=True, external=True)
            event.record(torch.cuda.current_stream(self._device))
            self._marks.append((stage, scale))
            self._events.append(event)

    def start(self) -> None:
        """A replay begins."""
        self._events[0].record(torch.cuda.current_stream(self._device))

    def milliseconds(self) -> dict[tuple[Stage, int | None], float]:
        """Time per stage and scale of the last replay; waits for the device."""
        torch.cuda.synchronize(self._device)
        spent: dict[tuple[Stage, int | None], float] = {}
        for mark, (first, second) in zip(self._marks, pairwise(self._events), strict=True):
            spent[mark] = spent.get(mark, 0.0) + first.elapsed_time(second)
        return spent
