"""What a person sees of a long run."""

import io

import pytest
from rich.console import Console

from stepvar_patch import progress
from stepvar_patch.progress import RunProgress


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    turned = Clock()
    monkeypatch.setattr(progress, "time", turned)
    return turned


def test_a_log_gets_plain_lines_and_loading_does_not_slow_the_pace(clock: Clock) -> None:
    out = io.StringIO()
    with RunProgress(Console(file=out, width=200)) as run:
        run.start(130, 10)
        with run.loading():
            clock.now += 60
        for _ in range(120):
            clock.now += 2
            run.advance(1)
    first, *lines = out.getvalue().splitlines()
    assert first == "10 of 130 images are already finished"
    assert lines[0] == "11/130 images · 0.50 images/s · 3:58 left"
    assert lines[-1] == "130/130 images · 0.50 images/s · 0:00 left"
    assert len(lines) == 41, "every third image, six seconds apart, and the last one"


def test_a_terminal_gets_one_bar(clock: Clock) -> None:
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=True, color_system=None)
    with RunProgress(console, unit="draws") as run:
        run.start(4, 0)
        for _ in range(4):
            clock.now += 0.25
            run.advance(1)
    last = out.getvalue().split("\r")[-1]
    assert "4/4" in last
    assert "4.00 draws/s · 0:00 left" in last
    assert out.getvalue().count("\n") == 1
