"""Which scales a policy touches, and how: rules addressed by scale index."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import Annotated

from annotated_types import Ge, Gt, Le

from infinity.errors import Mistakes, UserError, collecting
from infinity.policy import Rows
from infinity.schedule import ScaleSchedule


@dataclass(frozen=True, kw_only=True)
class ScaleRule:
    """What happens at one scale.

    Attributes:
        keep_ratio: fraction of the tokens that are computed, in (0, 1].
        rows: guidance rows that run from this scale on; a row once dropped stays dropped.
        run: False drops the scale: it adds nothing to the latent and caches nothing.
        guidance: overrides the guidance scale at this scale; None leaves it.
        guidance_echo: where the unconditional rows have stopped, adds so much of the guidance that
            the last scale with both rows found (ours); 0 is off. Nothing is added where no guidance
            ran before, or where it is not on logits.
    """

    keep_ratio: Annotated[float, Gt(0), Le(1)] = 1.0
    rows: Rows = "both"
    run: bool = True
    guidance: Annotated[float, Ge(0)] | None = None
    guidance_echo: Annotated[float, Ge(0)] = 0.0


Scales = Mapping[str | int, ScaleRule]
"""Rules by scale index; negative counts from the end, so that a rule fits every aspect ratio and
model. Keys may be text, as they are on the command line.
"""


def kept_count(keep_ratio: float, positions: int) -> int:
    """Tokens kept of ``positions``: all but ``floor((1 − keep_ratio) · positions)``.

    The ratio is read as the decimal number that was written, so that 0.9 of 10 is 9.

    Raises:
        UserError: ``keep_ratio`` outside (0, 1].
    """
    if not 0 < keep_ratio <= 1:
        raise UserError(f"keep_ratio is {keep_ratio}; allowed: above 0, at most 1")
    return positions - floor((1 - Fraction(str(float(keep_ratio)))) * positions)


def scale_index(key: str | int, schedule: ScaleSchedule) -> int:
    """Index from the start of the scale that ``key`` names.

    Raises:
        UserError: not an integer, or beyond the schedule.
    """
    count = len(schedule)
    try:
        index = int(key)
    except ValueError:
        raise UserError(
            f"scales.{key} is no scale index; allowed: integers from {-count} to {count - 1}"
        ) from None
    if not -count <= index < count:
        raise UserError(
            f"scales.{key} matches no scale of a schedule of {count}; "
            f"allowed: {-count} to {count - 1}"
        )
    return index % count


def resolve(scales: Scales, schedule: ScaleSchedule) -> dict[int, ScaleRule]:
    """The rules by scale index from the start, in scale order.

    Raises:
        Mistakes: a key is no index of ``schedule``; two keys name one scale; a keep_ratio outside
            (0, 1]; a later rule brings back guidance rows that an earlier one dropped; no scale is
            left to run.
    """
    named: dict[int, str | int] = {}
    found: list[str] = []
    for key in scales:
        with collecting(found):
            index = scale_index(key, schedule)
            if index in named:
                raise UserError(
                    f"scales.{named[index]} and scales.{key} name the same scale; keep one"
                )
            named[index] = key
    resolved = {index: scales[named[index]] for index in sorted(named)}
    rows: Rows = "both"
    for index, rule in resolved.items():
        with collecting(found):
            kept_count(rule.keep_ratio, schedule.tokens_per_scale[index])
        if rule.rows not in ("both", rows) and rows != "both":
            found.append(
                f"scales.{named[index]}.rows is {rule.rows}, but an earlier rule left only "
                f"{rows}; allowed: both (nothing more is dropped) or {rows}"
            )
        elif rule.rows != "both":
            rows = rule.rows
    if all(index in resolved and not resolved[index].run for index in range(len(schedule))):
        found.append("scales drops every scale; allowed: rules that leave at least one to run")
    if found:
        raise Mistakes(found)
    return resolved
