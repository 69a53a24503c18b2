"""What a policy is told while its decisions are recorded: answers that are known, and the question
that is not.
"""

from dataclasses import dataclass, field

from jaxtyping import Int64
from torch import Tensor

from infinity.policy import Decide

Answer = tuple[int, ...]


class UndecidedError(Exception):
    """A policy has asked for something that is not known before the device has run.

    Attributes:
        values: what it asked for.
    """

    def __init__(self, values: Int64[Tensor, " n"]) -> None:
        super().__init__("asked for values that the device has yet to find")
        self.values = values


def undecided(values: Int64[Tensor, " n"]) -> Answer:
    """Never an answer.

    Raises:
        UndecidedError: always.
    """
    raise UndecidedError(values)


@dataclass
class Answers:
    """Gives ``known`` answers, one per question, and has ``beyond`` answer what comes after them.

    A scale that was cut short at a question is carried out again from its beginning: the policy
    asks again what it asked before, and gets the same answers.
    """

    known: tuple[Answer, ...]
    beyond: Decide
    _given: int = field(default=0, init=False)

    def __call__(self, values: Int64[Tensor, " n"]) -> Answer:
        if self._given == len(self.known):
            return self.beyond(values)
        self._given += 1
        return self.known[self._given - 1]
