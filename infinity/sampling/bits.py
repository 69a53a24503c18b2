"""From bit logits to bits: truncation and sampling (spec: infinity-transformer §7.5)."""

from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from infinity.ops.fused import usable
from infinity.ops.fused.sample import draw
from infinity.transformer.guidance import guide


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


@dataclass(frozen=True)
class Draw:
    """How bits are drawn.

    Attributes:
        temperature: divides the logits.
        guidance: ``g·cond + (1 − g)·uncond`` where both halves are there; None takes the first.
        top_k, top_p: see :func:`infinity.sampling.bits.truncate`.
    """

    temperature: float
    guidance: float | None
    top_k: int
    top_p: float


def draw_bits(
    logits: Float[Tensor, "rows d 2"], draws: Float[Tensor, "images bits 2"], how: Draw
) -> tuple[Int64[Tensor, "t d"], Float[Tensor, "t d 2"]]:
    """One value per bit, and the logits after temperature and guidance, before truncation.

    Args:
        logits: as the head gives them; where there is guidance the unconditional half follows the
            conditional one, and where there is none a second half is not read.
        draws: exponential, of all T·D bits.
        how: see there.
    """
    total = draws.shape[0] * draws.shape[1] // logits.shape[1]
    if usable(logits, "sample"):
        return draw(logits.contiguous(), draws, **asdict(how))
    logits = logits.mul(1 / how.temperature)
    if how.guidance is not None:
        logits = guide(*logits.chunk(2), how.guidance)
    logits = logits[:total]
    left = truncate(logits, how.top_k, how.top_p)
    bits = sample_bits(left.reshape(draws.shape), draws)
    return bits.view(total, logits.shape[1]), logits
