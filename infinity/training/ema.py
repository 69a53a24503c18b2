"""Exponential moving average of a model's weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class ExponentialMovingAverage:
    """Averages the parameters of a model over about ``window`` steps, in fp32.

    Early steps are averaged evenly (rate ``1/step``), so the start is forgotten at once.
    """

    def __init__(self, model: nn.Module, window: int) -> None:
        self.window = window
        self.steps = 0
        self._live = dict(model.named_parameters())
        self.average = {key: value.detach().float().clone() for key, value in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the live weights by ``1/min(steps, window)``."""
        self.steps += 1
        live = [value.detach().float() for value in self._live.values()]
        rate = 1 / min(self.steps, self.window)
        torch._foreach_lerp_(list(self.average.values()), live, rate)

    def restart(self) -> None:
        """Forgets the past: the next update equals the live weights."""
        self.steps = 0

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The model holds the averaged weights inside the context."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for key, live in self._live.items():
            kept = live.detach().float().clone()
            live.copy_(self.average[key])
            self.average[key].copy_(kept)

    def state(self) -> dict[str, Tensor]:
        return dict(self.average)

    @torch.no_grad()
    def load(self, average: dict[str, Tensor], steps: int) -> None:
        """Continues from a stored average that has seen ``steps`` updates."""
        self.steps = steps
        for key, value in self.average.items():
            value.copy_(average[key])
