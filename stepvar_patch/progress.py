"""What a person sees of a long run: one bar on a terminal, plain lines in a log."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

LINE_EVERY_S = 5.0
"""Least time between two plain lines."""


class RunProgress:
    """Images done, images per second and the time left, on stderr.

    Args:
        console: where to tell; a terminal gets a bar.
        unit: what is counted.
    """

    def __init__(self, console: Console, unit: str = "images") -> None:
        self._console, self._unit = console, unit
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[pace]}"),
                console=console,
            )
        self._total = self._done = self._made = 0
        self._started = self._told = 0.0

    def __enter__(self) -> "RunProgress":
        return self

    def __exit__(self, *_error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def start(self, total: int, finished: int) -> None:
        """Begins with ``finished`` of ``total`` images already there."""
        self._total, self._done = total, finished
        self._started = time.perf_counter()
        if finished:
            self._console.print(
                f"{finished} of {total} {self._unit} are already finished", style="dim"
            )
        if self._bar is not None and finished < total:
            self._bar.start()
            self._bar.add_task("generating", total=total, completed=finished, pace="")

    @contextmanager
    def loading(self) -> Iterator[None]:
        """What happens inside does not slow the pace."""
        begun = time.perf_counter()
        yield
        self._started += time.perf_counter() - begun

    def advance(self, images: int) -> None:
        """Counts images that have just been finished."""
        self._done += images
        self._made += images
        now = time.perf_counter()
        rate = self._made / max(now - self._started, 1e-9)
        pace = f"{rate:.2f} {self._unit}/s · {_clock((self._total - self._done) / rate)} left"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], advance=images, pace=pace)
        elif now - self._told >= LINE_EVERY_S or self._done == self._total:
            self._told = now
            self._console.print(
                f"{self._done}/{self._total} {self._unit} · {pace}", highlight=False
            )


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
