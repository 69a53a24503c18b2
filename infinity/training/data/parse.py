"""What a caption asks for: the inverse of the caption grammar, for scoring."""

import re
from collections.abc import Collection
from dataclasses import dataclass

from infinity.training.data.captions import COLOURS, COUNT_WORDS, Relation
from infinity.training.data.nouns import is_countable, plural, with_article
from infinity.training.data.sources import STYLES

_CAPTION = re.compile(
    rf"(?P<object>.+?)(?:, (?P<style>{'|'.join(STYLES)}) style)?"
    rf"(?: on an? (?P<background>{'|'.join(COLOURS)}) background)?"
)
_RELATION_WORDS: dict[str, Relation] = {
    " to the left of ": "left",
    " above ": "above",
    " and ": "and",
}
_COUNTS = {word: count for count, word in COUNT_WORDS.items()}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What an image must show.

    Attributes:
        concepts: one name, or two for a pair.
        style: ``None`` when the caption names none.
        background: a colour name; ``white`` when the caption names none.
        count: copies of a single concept.
        relation: of a pair's two concepts, else ``None``.
    """

    concepts: tuple[str, ...]
    style: str | None
    background: str
    count: int = 1
    relation: Relation | None = None


class CaptionParser:
    """Reads captions about a fixed set of concept names.

    Args:
        concepts: every name that may occur.
    """

    def __init__(self, concepts: Collection[str]) -> None:
        self._names = {phrase: name for name in concepts for phrase in (name, with_article(name))}
        self._plurals = {plural(name): name for name in concepts if is_countable(name)}

    def parse(self, caption: str) -> Request | None:
        """The request of a caption in the grammar, or ``None`` for any other wording."""
        match = _CAPTION.fullmatch(caption.strip().lower())
        if match is None:
            return None
        phrase = match["object"]
        return self._parse_object(phrase, match) or self._parse_object(
            phrase.rpartition(",")[0], match
        )

    def _parse_object(self, phrase: str, match: re.Match[str]) -> Request | None:
        style, background = match["style"], match["background"] or "white"
        if phrase in self._names:
            return Request(concepts=(self._names[phrase],), style=style, background=background)
        number, _, noun = phrase.partition(" ")
        if number in _COUNTS and noun in self._plurals:
            return Request(
                concepts=(self._plurals[noun],),
                style=style,
                background=background,
                count=_COUNTS[number],
            )
        for words, relation in _RELATION_WORDS.items():
            for cut in re.finditer(words, phrase):
                first, second = phrase[: cut.start()], phrase[cut.end() :]
                if first in self._names and second in self._names:
                    return Request(
                        concepts=(self._names[first], self._names[second]),
                        style=style,
                        background=background,
                        relation=relation,
                    )
        return None
