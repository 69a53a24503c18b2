"""SparseVAR's score: how much one layer of the previous scale changed a token."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from infinity.schedule import Grid


def layer_change(
    before: Float[Tensor, "b n width"], after: Float[Tensor, "b n width"]
) -> Float[Tensor, "b n"]:
    """Mean squared difference between a layer's input and output, fp32; higher = keep.

    A small change marks a settled, low-frequency token.

    Source: SparseVAR, spec pruning-methods §3 item 1.
    """
    change: Tensor = (after.float() - before.float()).square().mean(dim=-1)
    return change


def resize_scores(
    scores: Float[Tensor, "b n"], grid: Grid, target: Grid
) -> Float[Tensor, "b n_target"]:
    """Scores on ``grid`` sampled bilinearly at the cell centres of ``target``.

    Source: spec pruning-methods §3 item 2; the kind of resize is not published, ours is bilinear.
    """
    maps = scores.reshape(-1, 1, *grid)
    if grid != target:
        maps = F.interpolate(maps, size=target, mode="bilinear", align_corners=False)
    return maps.flatten(1)
