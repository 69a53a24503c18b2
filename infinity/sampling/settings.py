"""How to sample: one value per scale, checked, from what a caller gives."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real

from infinity.config import SamplingDefaults
from infinity.errors import Mistakes, UserError, collecting
from infinity.transformer.guidance import Guidance

PerScale = float | Sequence[float]


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How to sample, resolved: one value per scale where scales may differ.

    Attributes:
        guidance_scale: per scale; 1 is off.
        temperature: per scale, > 0.
        top_k, top_p: see :func:`infinity.sampling.bits.truncate`.
        guidance: where the guidance halves meet.
    """

    guidance_scale: tuple[float, ...]
    temperature: tuple[float, ...]
    top_k: int
    top_p: float
    guidance: Guidance

    @property
    def guided(self) -> bool:
        return any(scale != 1 for scale in self.guidance_scale)

    def guided_from(self, si: int) -> bool:
        """Whether the unconditional half can still matter at scale ``si`` or later."""
        return any(scale != 1 for scale in self.guidance_scale[si:])


def resolve_settings(
    defaults: SamplingDefaults,
    scales: int,
    depth: int,
    *,
    guidance_scale: PerScale | None = None,
    temperature: PerScale | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    guidance_layers: Sequence[int] | None = None,
) -> SamplingSettings:
    """Settings for ``scales`` scales of a ``depth``-layer model; None takes the model's default.

    Args:
        guidance_scale: number, or a list of at least ``scales`` numbers; 1 is off.
        temperature: likewise, each > 0.
        top_k: 1 samples greedily, anything else leaves both values of a bit.
        top_p: in [0, 1]; 0 is off.
        guidance_layers: 0 combines logits, ``-k`` combines the output of the k-th last block.

    Raises:
        Mistakes: all that are out of range.
    """
    if guidance_scale is None:
        guidance_scale = defaults.guidance_scale
    if temperature is None:
        temperature = defaults.temperature
    top_k = defaults.top_k if top_k is None else top_k
    top_p = defaults.top_p if top_p is None else top_p
    if guidance_layers is None:
        guidance_layers = defaults.guidance_layers
    found: list[str] = []
    guidance_scales = temperatures = (1.0,)
    with collecting(found):
        guidance_scales = _per_scale("guidance_scale", guidance_scale, scales)
    with collecting(found):
        temperatures = _per_scale("temperature", temperature, scales)
    if min(temperatures) <= 0:
        found.append(
            f"temperature is {min(temperatures)}; allowed: numbers above 0 (top_k=1 is greedy)"
        )
    if not isinstance(top_k, Integral) or top_k < 0:
        found.append(f"top_k is {top_k!r}; allowed: 0 (off) or a positive integer")
    if not isinstance(top_p, Real) or not 0 <= top_p <= 1:
        found.append(f"top_p is {top_p!r}; allowed: a number in [0, 1], 0 = off")
    layers = tuple(guidance_layers) if isinstance(guidance_layers, Iterable) else ()
    if not layers or not all(isinstance(n, Integral) and -depth < n <= 0 for n in layers):
        found.append(
            f"guidance_layers is {guidance_layers!r}; allowed: a list of 0 for the logits and "
            f"-1 … -{depth - 1} for the last {depth - 1} blocks, at least one"
        )
    if found:
        raise Mistakes(found)
    return SamplingSettings(
        guidance_scale=guidance_scales,
        temperature=temperatures,
        top_k=int(top_k),
        top_p=float(top_p),
        guidance=Guidance(frozenset(depth + n for n in layers if n < 0), 0 in layers),
    )


def _per_scale(field: str, value: PerScale, scales: int) -> tuple[float, ...]:
    given = tuple(value) if isinstance(value, Iterable) else (value,) * scales
    if not all(isinstance(v, Real) for v in given):
        raise UserError(f"{field} is {value!r}; allowed: a number, or one per scale")
    values = tuple(map(float, given))
    if len(values) < scales:
        raise UserError(
            f"{field} lists {len(values)} values; allowed: one number, or at least one per scale "
            f"({scales} here)"
        )
    if not all(math.isfinite(v) for v in values):
        raise UserError(f"{field} is {value}; allowed: finite numbers")
    return values[:scales]
