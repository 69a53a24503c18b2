"""A control: tokens with the largest features."""

from jaxtyping import Float
from torch import Tensor

from infinity.schedule import Grid


def norm(x: Float[Tensor, "b n width"], grid: Grid) -> Float[Tensor, "b n"]:
    """Euclidean length of every token, fp32; higher = keep.

    Source: the L2 baseline of StepVAR's ablation (spec pruning-methods §1.6).
    """
    return x.float().square().sum(-1).sqrt()
