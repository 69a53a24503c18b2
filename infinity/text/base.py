"""What a text encoder gives the transformer: packed features, one run of rows per prompt."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int32
from torch import Tensor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextFeatures:
    """Features of a batch of prompts laid end to end.

    Attributes:
        rows: ``(sum(lengths), width)`` fp32; prompt ``i`` owns ``lengths[i]`` consecutive rows.
        lengths: rows per prompt, on the host; at least 1 each (the end token of an empty prompt).
    """

    rows: Float[Tensor, "n width"]
    lengths: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.lengths)

    def split(self) -> list[Float[Tensor, "_ width"]]:
        return list(self.rows.split(list(self.lengths)))

    def boundaries(self) -> Int32[Tensor, " b1"]:
        """Row boundaries of the prompts, starting at 0, on the host."""
        lengths = torch.tensor((0, *self.lengths), dtype=torch.int32)
        return lengths.cumsum(0, dtype=torch.int32)

    @staticmethod
    def stack(parts: Sequence[Float[Tensor, "_ width"]]) -> "TextFeatures":
        return TextFeatures(torch.cat(list(parts)), tuple(len(part) for part in parts))


@runtime_checkable
class TextEncoder(Protocol):
    """Encodes prompts one by one, so that a prompt's features never depend on its neighbours."""

    width: int
    max_tokens: int

    def encode(self, prompts: Sequence[str]) -> TextFeatures: ...


class CutPrompts:
    """Warns of the first prompt that is longer than an encoder reads."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens, self._told = max_tokens, False

    def tell(self, prompt: str) -> None:
        """Hears of a prompt that was cut."""
        if not self._told:
            self._told = True
            logger.warning(
                "the text encoder reads %d tokens, and prompt %r… has more; the rest of it, and of "
                "others as long, is left out",
                self._max_tokens,
                prompt[:40],
            )
