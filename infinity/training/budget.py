"""How far a run is, by steps and by time, and the learning rate that follows from it."""

import time
from collections.abc import Callable

from infinity.training.config import OptimizerConfig

AGREE_STEPS = 10
"""Steps between two looks at the clock; processes agree on the time there."""


class Budget:
    """Steps and training seconds used of a run's allowance; compilation does not count.

    The clock starts with :meth:`start`, called after the first step, whose time is compilation, and
    stands still between :meth:`pause` and the next start.

    Args:
        max_steps: allowance of steps.
        max_seconds: allowance of seconds.
        steps: steps used by earlier runs.
        seconds: seconds used by earlier runs.
        agree: this process's seconds → the value that all processes use.
        deadline: moment of ``time.monotonic()`` after which nothing may run; it shortens the
            allowance of seconds when the clock starts.
    """

    def __init__(
        self,
        max_steps: int,
        max_seconds: float,
        steps: int = 0,
        seconds: float = 0.0,
        agree: Callable[[float], float] = float,
        deadline: float | None = None,
    ) -> None:
        self.max_steps, self.max_seconds = max_steps, max_seconds
        self.steps, self.seconds = steps, seconds
        self._agree, self._deadline = agree, deadline
        self._before = seconds
        self._started: float | None = None

    @property
    def running(self) -> bool:
        return self._started is not None

    def start(self) -> None:
        """Starts the clock; the learning rate will have fallen by the deadline."""
        self._started = time.monotonic()
        if self._deadline is not None:
            left = max(0.0, self._agree(self._deadline - self._started))
            self.max_seconds = min(self.max_seconds, self._before + left)

    def pause(self) -> None:
        """Stops the clock, e.g. while evaluating."""
        if self._started is not None:
            self.seconds = self._before = self._agree(self.now())
            self._started = None

    def tick(self) -> None:
        """Counts one step, and looks at the clock every :data:`AGREE_STEPS` steps."""
        self.steps += 1
        if self._started is not None and self.steps % AGREE_STEPS == 0:
            self.seconds = self._agree(self.now())

    def now(self) -> float:
        """Seconds used by this process up to this moment."""
        running = 0.0 if self._started is None else time.monotonic() - self._started
        return self._before + running

    @property
    def progress(self) -> float:
        """Used share of the allowance, by the scarcer of steps and time."""
        by_time = self.seconds / max(self.max_seconds, 1e-9)
        return min(1.0, max(self.steps / self.max_steps, by_time))

    def spent(self, seconds: float | None = None) -> bool:
        """Whether the allowance, or an earlier limit of ``seconds``, is used up."""
        return self.progress >= 1.0 or (seconds is not None and self.seconds >= seconds)


def deadline_after(seconds: float | None) -> float | None:
    """The moment of ``time.monotonic()`` so many seconds from now; None stays None."""
    return None if seconds is None else time.monotonic() + seconds


def learning_rate(config: OptimizerConfig, warm_steps: int, progress: float) -> float:
    """Learning rate of the next step.

    Args:
        config: warm-up length, peak and decay.
        warm_steps: steps taken since the moments were fresh.
        progress: used share of the run in [0, 1].
    """
    warm = min(1.0, (warm_steps + 1) / max(1, config.warmup_steps))
    span = max(1e-9, 1 - config.decay_from)
    fallen = min(1.0, max(0.0, progress - config.decay_from) / span)
    return config.learning_rate * warm * (1 - fallen * (1 - config.final_fraction))
