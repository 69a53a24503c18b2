"""The loop that every training run goes through: steps, log rows, sheets and checkpoints."""

import time
from collections.abc import Callable
from typing import TypeVar

import torch

from infinity.training.run import TrainingRun, synchronize

Output = TypeVar("Output")


def train(
    run: TrainingRun,
    step: Callable[[], Output],
    *,
    device: torch.device,
    until_seconds: float | None,
    log_every: int,
    on_first: Callable[[float], None],
    on_log: Callable[[Output, float], None],
    recurring: tuple[tuple[float, Callable[[], object]], ...],
) -> None:
    """Takes steps until the run's budget, or an earlier limit, is spent.

    Args:
        run: its budget's clock starts after the first step, which compiles.
        step: one step of the run.
        device: waited for before a time is told.
        until_seconds: earlier limit of training seconds; None is the whole budget.
        log_every: steps between log rows.
        on_first: told the seconds of the first step.
        on_log: told a step's output, and the steps per second since the last row.
        recurring: seconds between two calls, and what is called while the clock stands still.
    """
    budget = run.budget
    begun = time.monotonic()
    done = [begun] * len(recurring)
    logged = (budget.steps, budget.seconds)
    while not budget.spent(until_seconds):
        output = step()
        if not budget.running:
            synchronize(device)
            on_first(time.monotonic() - begun)
            budget.start()
            logged = (budget.steps, budget.seconds)
        elif budget.steps % log_every == 0:
            synchronize(device)
            steps, seconds = budget.steps - logged[0], budget.now() - logged[1]
            on_log(output, steps / max(seconds, 1e-9))
            logged = (budget.steps, budget.now())
        now = time.monotonic()
        for index, (seconds, work) in enumerate(recurring):
            if now - done[index] > seconds:
                budget.pause()
                work()
                budget.start()
                done[index] = time.monotonic()
    synchronize(device)
    budget.pause()
