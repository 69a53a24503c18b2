"""Rank of the right name among all names, by similarity of embeddings."""

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def name_ranks(
    predicted: Float[Tensor, "n d"],
    names: Float[Tensor, "c d"],
    truth: Int[Tensor, " n"],
    ignored: Bool[Tensor, "n c"] | None = None,
) -> Int[Tensor, " n"]:
    """Rank of each row's true name by cosine to the prediction; 1 is best, ``c`` the worst.

    Both sides are centred on the names' mean, which all names share. Names of equal similarity
    count as worse, so ties never hurt.

    Args:
        predicted: text embeddings predicted from images.
        names: embeddings of all names.
        truth: index of each row's name.
        ignored: names that don't compete in a row, such as synonyms of the true one.
    """
    centre = names.mean(0)
    scores = F.normalize(predicted - centre, dim=1) @ F.normalize(names - centre, dim=1).T
    own = scores.gather(1, truth[:, None].to(scores.device))
    if ignored is not None:
        scores = scores.masked_fill(ignored.to(scores.device), float("-inf"))
    return (scores > own).sum(dim=1) + 1
