"""Text features of a call in memory that other prompts of similar length can be put into."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from infinity.text.base import TextFeatures
from infinity.transformer.fused import text_room
from infinity.upload import upload


@dataclass(frozen=True)
class Prompts:
    """Features of all rows of a call in memory of a rounded size, on the device.

    Prompts of similar length then share shapes, and with them recordings and roundings.

    Attributes:
        rows: ``(room, width)``; those past the last boundary stand for nothing.
        cu_seqlens: row boundaries.
        lengths: rows per prompt, of the first call.
        longest: no prompt of calls that share the memory is longer.
    """

    rows: Float[Tensor, "room width"]
    cu_seqlens: Int32[Tensor, " b1"]
    lengths: tuple[int, ...]
    longest: int

    @staticmethod
    def of(text: TextFeatures, device: torch.device) -> "Prompts":
        """``text`` in memory of its own."""
        room = text_room(len(text.rows), len(text))
        rows = torch.zeros(room, text.rows.shape[1], device=device)
        rows[: len(text.rows)].copy_(text.rows)
        longest = text_room(max(text.lengths), 1)
        return Prompts(rows, upload(text.boundaries(), device), text.lengths, longest)

    def replace(self, text: TextFeatures) -> None:
        """Puts other prompts of similar length into the memory."""
        self.rows[: len(text.rows)].copy_(text.rows)
        self.cu_seqlens.copy_(upload(text.boundaries(), self.cu_seqlens.device))
