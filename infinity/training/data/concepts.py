"""Which emoji are concepts worth learning, and what they are called."""

import json
import re
from dataclasses import dataclass

_EXCLUDED_SUBGROUPS = frozenset(
    {
        "country-flag",
        "subdivision-flag",
        "flag",
        "keycap",
        "alphanum",
        "arrow",
        "av-symbol",
        "gender",
        "math",
        "punctuation",
        "currency",
        "other-symbol",
        "zodiac",
        "religion",
        "warning",
        "transport-sign",
        "skin-tone",
        "hair-style",
        "family",
        "person-symbol",
    }
)
_EXCLUDED_NAMES = frozenset(
    {
        "anger symbol",
        "dashing away",
        "eye in speech bubble",
        "hundred points",
        "left speech bubble",
        "middle finger",
        "mobile phone with arrow",
        "radio button",
        "diamond with a dot",
        "right anger bubble",
        "zzz",
    }
)
_SMALL_SHAPE = re.compile(r"(small|medium).* (square|diamond)$|square button$")
_CLOCK_FACE = re.compile(r"o'clock$|-thirty$")
_GENDERED = re.compile(r"(^|-)(2640|2642)($|-)|^1f46[89]-200d")
_KEYWORD = re.compile(r"[a-z][a-z -]{2,}$")


@dataclass(frozen=True, kw_only=True)
class Concept:
    """One thing that every style draws: its code point sequence, name, keywords and subgroup."""

    hexcode: str
    name: str
    keywords: tuple[str, ...]
    group: str


def read_concepts(data: bytes, groups: bytes) -> dict[str, Concept]:
    """Concepts of emojibase's English data, keyed by code points, without the kinds left out.

    Left out: flags, keycaps, letters, clock faces, abstract signs, skin tones, families, hair-style
    variants, and the gendered forms of a person whose neutral form exists.

    Args:
        data: ``en/data.json`` of emojibase-data.
        groups: its ``meta/groups.json``.
    """
    subgroups = json.loads(groups)["subgroups"]
    out: dict[str, Concept] = {}
    for entry in json.loads(data):
        group = subgroups.get(str(entry.get("subgroup")))
        name = entry["label"].lower().replace("’", "'").replace("ñ", "n")
        hexcode = normalise_hexcode(entry["hexcode"])
        if group is None or _is_left_out(name, hexcode, group):
            continue
        keywords = tuple(
            sorted(
                {
                    tag
                    for tag in (t.lower() for t in entry.get("tags", ()))
                    if _KEYWORD.match(tag) and tag not in name
                }
            )
        )
        out[hexcode] = Concept(hexcode=hexcode, name=name, keywords=keywords, group=group)
    return out


def normalise_hexcode(text: str) -> str:
    """Lower-case code points joined by ``-`` without variation selectors, as all packages know."""
    return "-".join(p for p in text.lower().replace("_", "-").split("-") if p != "fe0f")


def _is_left_out(name: str, hexcode: str, group: str) -> bool:
    return (
        group in _EXCLUDED_SUBGROUPS
        or name in _EXCLUDED_NAMES
        or ":" in name
        or bool(_SMALL_SHAPE.search(name))
        or bool(_CLOCK_FACE.search(name))
        or bool(_GENDERED.search(hexcode))
    )
