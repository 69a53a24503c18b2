"""The caption grammar of the training data, and the split that keeps some drawings unseen.

A caption is ``[article] name[, keyword][, STYLE style][ on a COLOUR background]``. Pairs and counts
put ``X to the left of Y``, ``X above Y``, ``X and Y`` or ``two Xs`` in the place of the name.
"""

import hashlib
from random import Random
from typing import Literal

from infinity.training.data.nouns import is_countable, plural, with_article
from infinity.training.data.pack import Record

Relation = Literal["left", "above", "and"]
RELATIONS: tuple[Relation, ...] = ("left", "above", "and")

COLOURS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "red": (220, 50, 47),
    "orange": (245, 145, 35),
    "yellow": (250, 222, 75),
    "green": (80, 175, 80),
    "teal": (15, 140, 140),
    "blue": (60, 110, 225),
    "purple": (130, 65, 185),
    "pink": (250, 160, 195),
    "brown": (125, 80, 50),
    "gray": (150, 150, 150),
    "black": (20, 20, 20),
}
"""Background colours by name, sRGB."""

COUNT_WORDS: dict[int, str] = {2: "two", 3: "three", 4: "four"}

_HELD_OUT = 0.03
_ARTICLE = 0.6
_KEYWORD = 0.12
_STYLE = 0.88
_WHITE_STATED = 0.15
_RELATION_WORDS: dict[Relation, str] = {"left": "to the left of", "above": "above", "and": "and"}


def is_held_out(concept: str, style: str) -> bool:
    """Whether training never shows this pair (3 % of all); a pure function of its words."""
    digest = hashlib.sha256(f"{concept}|{style}".encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32 < _HELD_OUT


def plain_caption(record: Record) -> str:
    """The caption of one drawing on white with article and style; the background goes unsaid."""
    return f"{with_article(record.concept)}, {record.style} style"


def single_caption(record: Record, background: str, rng: Random) -> str:
    """A caption of one drawing on a background of :data:`COLOURS`."""
    name = with_article(record.concept) if rng.random() < _ARTICLE else record.concept
    if record.keywords and rng.random() < _KEYWORD:
        name = f"{name}, {rng.choice(record.keywords)}"
    return name + _ending(record.style, background, rng)


def pair_caption(
    first: Record, second: Record, relation: Relation, background: str, rng: Random
) -> str:
    """A caption of two drawings of one style: ``first`` is the left or the upper one."""
    names = (first.concept, second.concept)
    if rng.random() < _ARTICLE:
        names = (with_article(first.concept), with_article(second.concept))
    phrase = f"{names[0]} {_RELATION_WORDS[relation]} {names[1]}"
    return phrase + _ending(first.style, background, rng)


def count_caption(record: Record, count: int, background: str, rng: Random) -> str:
    """A caption of ``count`` copies of one drawing.

    Raises:
        ValueError: the count has no word in :data:`COUNT_WORDS`, or the concept cannot be counted.
    """
    if count not in COUNT_WORDS or not is_countable(record.concept):
        raise ValueError(f"no caption says {count} of {record.concept!r}")
    phrase = f"{COUNT_WORDS[count]} {plural(record.concept)}"
    return phrase + _ending(record.style, background, rng)


def _ending(style: str, background: str, rng: Random) -> str:
    words = f", {style} style" if rng.random() < _STYLE else ""
    if background != "white" or rng.random() < _WHITE_STATED:
        words += f" on {with_article(background)} background"
    return words
