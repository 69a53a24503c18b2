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
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[Stage, int | None]] = []
        self._times: list[float] = []
        self._events: list[torch.cuda.Event] = []
        self._now()

    def mark(self, stage: Stage, scale: int | None = None) -> None:
        if self._device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return
        self._marks.append((stage, scale))
        self._now()

    def milliseconds(self) -> dict[tuple[Stage, int | None], float]:
        """Time per stage and scale, in the order of their first marks; waits for the device."""
        spent: dict[tuple[Stage, int | None], float] = {}
        for mark, ms in zip(self._marks, self._intervals(), strict=True):
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
