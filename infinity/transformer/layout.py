"""How the tokens at hand lie in memory, and what follows from it for every block.

Shape legend: b rows, M kept per row, T packed total, R×M token axes of a block (see ``block.py``),
C width.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from infinity.ops.fused.residual_norm import RowsOf
from infinity.ops.fused.rotate import Phases
from infinity.tokens import PackedTokens
from infinity.transformer.block import Rope


@dataclass(frozen=True)
class TokenLayout:
    """Packed tokens with everything that every block reads of their layout, computed once.

    Attributes:
        tokens: the stream.
        phases: rotary phases by position, as the kernels read them.
        row_ids: row of every token; None where all rows keep equally many.
        rope: the phases gathered per token, where the blocks run unfused.
        pruned: whether some positions are left out.
    """

    tokens: PackedTokens
    phases: Phases
    row_ids: Tensor | None
    rope: Rope | None = None
    pruned: bool = False

    @property
    def rows(self) -> RowsOf:
        return RowsOf(self.tokens.max_seqlen, self.row_ids)

    def gathered_rope(self) -> Rope:
        """Rotary phases gathered per token."""
        if self.rope is not None:
            return self.rope
        place = self.phases.offset + self.phases.positions
        return Rope(self.spread(self.phases.cos[place]), self.spread(self.phases.sin[place]))

    def spread(self, x: Tensor) -> Tensor:
        """``(T, …)`` as ``(R, M, …)``."""
        if self.row_ids is None:
            return x.unflatten(0, (self.tokens.rows, self.tokens.max_seqlen))
        return x[None]

    def per_token(self, rows: Float[Tensor, "b width"]) -> Tensor:
        """One vector per row, broadcastable to ``(R, M, C)``."""
        return rows[:, None] if self.row_ids is None else rows[self.row_ids][None]
