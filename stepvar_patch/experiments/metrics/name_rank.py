"""Rank of the right name among all names, by similarity of embeddings."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def name_ranks(
    predicted: Float[Tensor, "n d"], names: Float[Tensor, "c d"], truth: Int[Tensor, " n"]
) -> Int[Tensor, " n"]:
    """Rank of each row's true name by cosine to the prediction; 1 is best, ``c`` the worst.

    Both sides are centred on the names' mean, which all names share. Names of equal similarity
    count as worse, so ties never hurt.

    Args:
        predicted: text embeddings predicted from images.
        names: embeddings of all names.
        truth: index of each row's name.
    """
    centre = names.mean(0)
    scores = F.normalize(predicted - centre, dim=1) @ F.normalize(names - centre, dim=1).T
    own = scores.gather(1, truth[:, None].to(scores.device))
    return (scores > own).sum(dim=1) + 1
