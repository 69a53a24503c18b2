"""Share of sampled bits that two runs with the same random numbers have in common."""

from collections.abc import Sequence

from jaxtyping import Real
from torch import Tensor


def bit_agreement(codes: Real[Tensor, "d h w"], reference: Real[Tensor, "d h w"]) -> float:
    """Share of the scale's code values that have the reference's sign; 1 is equal, 0.5 is chance.

    Args:
        codes: one image's codes of one scale; a value of 0 (nothing drawn there) agrees with none.
        reference: the dense run's codes of that scale.
    """
    return float((codes.sign() == reference.sign()).sum()) / reference.numel()


def first_divergence(agreement: Sequence[float | None]) -> int | None:
    """The first scale whose bits differ or were not drawn; None when all scales agree."""
    return next((si for si, share in enumerate(agreement) if share != 1), None)
