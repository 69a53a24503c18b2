"""FastVAR's score: how far a token lies from the average token of its row."""

from jaxtyping import Float
from torch import Tensor

from infinity.ops.fused import mean_distance as fused
from infinity.schedule import Grid


def mean_distance(x: Float[Tensor, "b n width"], grid: Grid) -> Float[Tensor, "b n"]:
    """Squared distance of every token to the mean token of its row, fp32; higher = keep.

    The mean stands for the lowest spatial frequency, so distant tokens carry detail.

    Source: FastVAR (arXiv 2503.23367), pivotal token selection; spec pruning-methods §2.
    """
    return fused.mean_distance(x)
