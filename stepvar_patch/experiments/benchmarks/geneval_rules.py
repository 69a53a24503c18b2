"""GenEval's rules: whether detected objects are what a prompt asks for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import hypot
from typing import Any

from jaxtyping import Bool
from torch import Tensor

THRESHOLD = 0.3
COUNTING_THRESHOLD = 0.9
"""Least confidence of an object; of prompts that ask for a number, the second."""

MAX_OBJECTS = 16
POSITION_THRESHOLD = 0.1
"""Share of both objects' extents by which their centres must be apart to count as apart."""

_NEARLY_NONE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Detection:
    """One detected object.

    Attributes:
        name: of the benchmark's 80 classes.
        score: confidence.
        box: left, top, right, bottom in pixels.
        mask: of its pixels; None when only the box is known.
    """

    name: str
    score: float
    box: tuple[float, float, float, float]
    mask: Bool[Tensor, "h w"] | None = None


ColourOf = Callable[[Sequence[Detection]], list[str]]
"""Names the colour of each of some objects of one class."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a picture shows what was asked for, and what is wrong with it."""

    correct: bool
    reasons: tuple[str, ...]


def confident(found: Sequence[Detection], tag: str) -> dict[str, list[Detection]]:
    """The objects that count, by class, the surest first.

    Args:
        found: all detections of a picture.
        tag: task of the prompt; ``counting`` asks for surer objects.
    """
    least = COUNTING_THRESHOLD if tag == "counting" else THRESHOLD
    objects: dict[str, list[Detection]] = {}
    for detection in sorted(found, key=lambda d: -d.score):
        same = objects.setdefault(detection.name, [])
        if detection.score > least and len(same) < MAX_OBJECTS:
            same.append(detection)
    return {name: same for name, same in objects.items() if same}


def judge(
    metadata: Mapping[str, Any], objects: Mapping[str, Sequence[Detection]], colour_of: ColourOf
) -> Verdict:
    """The benchmark's verdict on one picture.

    Every requirement of ``include`` must be met by the surest objects of its class: their number,
    then their colours, then their place relative to the objects of an earlier requirement, each of
    these to each of those. A class of ``exclude`` must have fewer objects than its count.

    Args:
        metadata: of the prompt.
        objects: by class, the surest first.
        colour_of: asked only where a colour is required.

    Source: Ghosh et al. 2023, sec. 3; thresholds of the official program.
    """
    reasons: list[str] = []
    groups: list[Sequence[Detection] | None] = []
    for rule in metadata.get("include", ()):
        chosen = list(objects.get(rule["class"], ()))[: rule["count"]]
        wrong = _unmet(rule, chosen, groups, colour_of)
        groups.append(None if wrong else chosen)
        reasons += [wrong] if wrong else []
    for rule in metadata.get("exclude", ()):
        number = len(objects.get(rule["class"], ()))
        if number >= rule["count"]:
            reasons.append(f"fewer than {rule['count']} × {rule['class']} expected, {number} found")
    return Verdict(correct=not reasons, reasons=tuple(reasons))


def relations(a: Detection, b: Detection) -> set[str]:
    """Where ``a`` is relative to ``b``: left of, right of, above, below; two at most, or none.

    The distance of the centres is shortened on each axis by a tenth of both extents; what is left,
    divided by the whole distance, must exceed one half on an axis.
    """
    shortened, whole = [], []
    for low, high in ((0, 2), (1, 3)):
        offset = (a.box[low] + a.box[high] - b.box[low] - b.box[high]) / 2
        extents = abs(a.box[high] - a.box[low]) + abs(b.box[high] - b.box[low])
        left = max(abs(offset) - POSITION_THRESHOLD * extents, 0.0)
        shortened.append(left if offset > 0 else -left)
        whole.append(offset)
    if max(map(abs, shortened)) < _NEARLY_NONE:
        return set()
    x, y = (part / hypot(*whole) for part in shortened)
    named = (("left of", -x), ("right of", x), ("above", -y), ("below", y))
    return {name for name, share in named if share > 0.5}


def _unmet(
    rule: Mapping[str, Any],
    chosen: Sequence[Detection],
    groups: Sequence[Sequence[Detection] | None],
    colour_of: ColourOf,
) -> str:
    """What is wrong with the objects of a requirement; empty when it is met."""
    name, count = rule["class"], rule["count"]
    if len(chosen) < count:
        return f"{count} × {name} expected, {len(chosen)} found"
    if "color" in rule:
        colours = colour_of(chosen)
        if colours.count(rule["color"]) < count:
            return f"{count} × {rule['color']} {name} expected, found {', '.join(colours)}"
    if "position" in rule:
        relation, target = rule["position"]
        others = groups[target]
        if others is None:
            return f"nothing found that {name} could be {relation}"
        for one in chosen:
            for other in others:
                if relation not in (found := relations(one, other)):
                    said = " and ".join(sorted(found)) or "neither beside nor above"
                    return f"{name} {relation} {other.name} expected, it is {said}"
    return ""
