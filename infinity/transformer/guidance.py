"""Classifier-free guidance: where the two halves of the rows meet, and how (spec §7.1)."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Guidance:
    """Where conditional and unconditional halves are combined.

    Attributes:
        layers: 0-based blocks after which hidden states are combined.
        logits: whether logits are combined.
    """

    layers: frozenset[int]
    logits: bool

    def unconditional_depth(self, depth: int) -> int:
        """Leading layers of ``depth`` in which the unconditional half can still influence the
        picture.
        """
        return depth if self.logits else max(self.layers, default=-1) + 1


def guide(
    cond: Float[Tensor, "..."], uncond: Float[Tensor, "..."], scale: float
) -> Float[Tensor, "..."]:
    """``scale · cond + (1 − scale) · uncond``: 1 is no guidance, larger follows the prompt more."""
    return scale * cond + (1 - scale) * uncond
