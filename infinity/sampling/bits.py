"""From bit logits to bits: truncation and sampling (spec: infinity-transformer §7.5)."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def truncate(
    logits: Float[Tensor, "*shape 2"], top_k: int, top_p: float
) -> Float[Tensor, "*shape 2"]:
    """``logits`` with unlikely values at −∞; the larger value of a pair always survives.

    Args:
        logits: pairs (value 0, value 1).
        top_k: 1 keeps the larger value only (a tie keeps both); 0 and anything above 1 keep both.
        top_p: in [0, 1]; the smaller value goes when its probability is at most ``1 − top_p``; 0
            switches it off.

    Source: spec infinity-transformer §7.5.
    """
    if top_k == 1:
        logits = logits.masked_fill(logits < logits.amax(-1, keepdim=True), float("-inf"))
    if top_p > 0:
        smaller = (logits[..., 1:] < logits[..., :1]).long()
        probability = logits.softmax(-1).gather(-1, smaller)
        value = torch.arange(2, device=logits.device)
        removed = (probability.double() <= 1 - top_p) & (smaller == value)
        logits = logits.masked_fill(removed, float("-inf"))
    return logits


def sample_bits(
    logits: Float[Tensor, "images bits 2"], draws: Float[Tensor, "images bits 2"]
) -> Int64[Tensor, "images bits"]:
    """One value per bit: the index with the larger probability-to-draw ratio.

    With exponential draws this is an exact categorical sample, and the way PyTorch's multinomial
    works.
    """
    return (logits.softmax(-1) / draws).argmax(-1)
