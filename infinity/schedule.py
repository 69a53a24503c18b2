"""Scale schedules: which token grids a picture of a given shape is drawn on."""

from dataclasses import dataclass
from functools import cached_property
from typing import get_args

from infinity.config import Resolution

_PREFIX: dict[str, int] = {"0.06M": 7, "0.25M": 10, "0.60M": 12, "1M": 13}

# height/width ratio → the 13 grids of the family, coarse to fine (spec: bsq-vae §5).
_TALL_GRIDS: dict[float, str] = {
    1.0: "1,1 2,2 4,4 6,6 8,8 12,12 16,16 20,20 24,24 32,32 40,40 48,48 64,64",
    1.25: "1,1 2,2 3,3 5,4 10,8 15,12 20,16 25,20 30,24 35,28 45,36 55,44 70,56",
    1.333: "1,1 2,2 4,3 8,6 12,9 16,12 20,15 24,18 28,21 36,27 48,36 60,45 72,54",
    1.5: "1,1 2,2 3,2 6,4 9,6 15,10 21,14 27,18 33,22 39,26 48,32 63,42 78,52",
    1.75: "1,1 2,2 3,3 7,4 11,6 14,8 21,12 28,16 35,20 42,24 56,32 70,40 84,48",
    2.0: "1,1 2,2 4,2 6,3 10,5 16,8 22,11 30,15 38,19 46,23 60,30 74,37 90,45",
    2.5: "1,1 2,2 5,2 10,4 15,6 20,8 25,10 30,12 40,16 50,20 65,26 80,32 100,40",
    3.0: "1,1 2,2 6,2 9,3 15,5 21,7 27,9 36,12 45,15 54,18 72,24 90,30 111,37",
}

Grid = tuple[int, int]


def _templates() -> dict[float, tuple[Grid, ...]]:
    templates: dict[float, tuple[Grid, ...]] = {}
    for ratio, text in _TALL_GRIDS.items():
        grids = tuple((int(h), int(w)) for h, w in (cell.split(",") for cell in text.split()))
        templates[ratio] = grids
        if ratio != 1.0:
            templates[int(1000 / ratio) / 1000] = tuple((w, h) for h, w in grids)
    return templates


TEMPLATES: dict[float, tuple[Grid, ...]] = _templates()
"""All 15 aspect-ratio templates, height/width → 13 grids, in the family's order (it decides
ties).
"""


@dataclass(frozen=True)
class ScaleSchedule:
    """The token grids of one picture, coarse to fine.

    Attributes:
        aspect_ratio: height / width of the template, e.g. 1.333.
        resolution: pixel-count class; a class is a prefix of the template.
        grids: ``(h, w)`` per scale, in transformer tokens.
        rope_reference: the grid on which rotary coordinates are counted (spec:
            infinity-transformer §6).
    """

    aspect_ratio: float
    resolution: Resolution
    grids: tuple[Grid, ...]
    rope_reference: Grid

    def __len__(self) -> int:
        return len(self.grids)

    @cached_property
    def tokens_per_scale(self) -> tuple[int, ...]:
        return tuple(h * w for h, w in self.grids)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Index of every scale's first token in the concatenated sequence, and the total at the
        end.
        """
        total, out = 0, [0]
        for count in self.tokens_per_scale:
            total += count
            out.append(total)
        return tuple(out)

    def latent_grids(self, patchify: bool) -> tuple[Grid, ...]:
        """Tokenizer grids: the token grids, doubled when one token covers 2×2 latent cells."""
        factor = 2 if patchify else 1
        return tuple((factor * h, factor * w) for h, w in self.grids)


def nearest_aspect_ratio(height_over_width: float) -> float:
    """The template ratio with the smallest absolute difference; ties go to the earlier template.

    Raises:
        ValueError: the ratio is not a positive finite number.
    """
    if not 0 < height_over_width < float("inf"):
        raise ValueError(f"aspect ratio {height_over_width} must be a positive finite height/width")
    return min(TEMPLATES, key=lambda ratio: abs(ratio - height_over_width))


def scale_schedule(
    aspect_ratio: float, resolution: Resolution, rope_reference: Resolution = "1M"
) -> ScaleSchedule:
    """The schedule of the template nearest to ``aspect_ratio`` (height / width).

    Raises:
        ValueError: unknown resolution class, or a ratio that is not positive and finite.

    Source: spec infinity-transformer §2 and §6; Infinity (arXiv 2412.04431).
    """
    for name in (resolution, rope_reference):
        if name not in _PREFIX:
            raise ValueError(f"resolution {name!r} must be one of {get_args(Resolution)}")
    ratio = nearest_aspect_ratio(aspect_ratio)
    grids = TEMPLATES[ratio]
    return ScaleSchedule(
        aspect_ratio=ratio,
        resolution=resolution,
        grids=grids[: _PREFIX[resolution]],
        rope_reference=grids[_PREFIX[rope_reference] - 1],
    )
