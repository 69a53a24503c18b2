"""The arguments of a call of the pipeline that take one value or many: as lists, checked."""

import secrets
from collections.abc import Iterable, Sequence
from numbers import Integral

from infinity.errors import UserError


def listed_prompts(prompts: str | Sequence[str]) -> list[str]:
    """One or several prompts as a list.

    Raises:
        UserError: there is none, or one is no text.
    """
    listed = _texts("prompts", prompts)
    if not listed:
        raise UserError("prompts is empty; allowed: at least one prompt")
    return listed


def listed_negatives(negative: str | Sequence[str] | None, prompts: int) -> list[str]:
    """One negative prompt per prompt; an empty one means the model's unconditional features.

    Raises:
        UserError: another number of them, or one is no text.
    """
    if negative is None:
        return [""] * prompts
    listed = _texts("negative_prompt", negative)
    if isinstance(negative, str):
        listed *= prompts
    if len(listed) != prompts:
        raise UserError(
            f"negative_prompt lists {len(listed)} entries; allowed: one, or one per prompt"
        )
    return listed


def listed_seeds(
    seed: int | Sequence[int] | None, prompts: int, images_per_prompt: int, *, shared: bool
) -> tuple[int, ...]:
    """The seed of every image, prompt-major; drawn where none is given.

    Args:
        seed: one for all prompts, or one per prompt; further images of a prompt count up from it.
        prompts: how many.
        images_per_prompt: how many.
        shared: one seed serves the whole batch.

    Raises:
        UserError: out of range, another number of them, or several where one is shared.
    """
    if seed is None:
        firsts = [secrets.randbits(32) for _ in range(prompts)]
    elif isinstance(seed, Integral):
        firsts = [int(seed)] * prompts
    else:
        listed = list(seed) if isinstance(seed, Iterable) else [seed]
        if not all(isinstance(one, Integral) for one in listed):
            raise UserError(
                f"seed is {seed!r}; allowed: an integer in [0, 2^63), or one per prompt"
            )
        firsts = [int(one) for one in listed]
    if len(firsts) != prompts:
        raise UserError(f"seed lists {len(firsts)} values; allowed: one, or one per prompt")
    seeds = tuple(first + offset for first in firsts for offset in range(images_per_prompt))
    if not all(0 <= s < 1 << 63 for s in seeds):
        raise UserError(f"seed is {seed}; allowed: integers in [0, 2^63)")
    if not shared:
        return seeds
    if not (seed is None or isinstance(seed, Integral)):
        raise UserError("seed is a list; with compatibility one seed serves the batch")
    return seeds[:1] * len(seeds)


def _texts(field: str, given: str | Sequence[str]) -> list[str]:
    listed = [given] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
    for text in listed:
        if not isinstance(text, str):
            raise UserError(f"{field} holds {text!r}; allowed: a text, or a list of texts")
    return listed
