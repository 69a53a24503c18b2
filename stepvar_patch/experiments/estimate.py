"""A measured number with its uncertainty, or the reason why there is none."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepvar_patch.experiments.tabulate import six_digits

NO_DENSE = "no dense run to compare with"
"""Reason of metrics that compare, where there is nothing to compare with."""

RESAMPLES = 1000
DISTANCE_RESAMPLES = 200
"""For distances between sets, which take longer and of which only the spread is used."""

_TAILS = (2.5, 97.5)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One metric of one run.

    Attributes:
        value: None when it could not be computed.
        low: lower end of the 95 % bootstrap interval over prompts; None without one.
        high: its upper end.
        n: images that the value is computed from.
        missing: why there is no value; empty if there is one.
        per_scale: for metrics of every scale, the means from the first scale to the last.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    missing: str = ""
    per_scale: tuple[float | None, ...] = ()

    @classmethod
    def absent(cls, reason: str) -> "Estimate":
        return cls(missing=f"missing: {reason}")


def compact(estimate: Estimate) -> dict[str, Any]:
    """An estimate's JSON form: six significant digits, and nothing that is not known."""
    found = {field.name: getattr(estimate, field.name) for field in fields(Estimate)}
    return {name: six_digits(value) for name, value in found.items() if value not in (None, "", ())}


def as_estimate(value: dict[str, Any]) -> Estimate:
    """An estimate from its JSON form, in which what is not known may be left out."""
    return Estimate(**{**value, "per_scale": tuple(value.get("per_scale", ()))})


class Bootstrap:
    """Resamples of a run's prompts, shared by all its metrics.

    Args:
        groups: the prompt id of every image; images of one prompt are drawn together.

    Source: Efron and Tibshirani 1993, ch. 13 (percentile interval).
    """

    def __init__(self, groups: Sequence[str]) -> None:
        names = {name: index for index, name in enumerate(dict.fromkeys(groups))}
        of_image = np.array([names[name] for name in groups], dtype=np.int64)
        rng = np.random.default_rng(0)
        share = np.full(len(names), 1 / max(1, len(names)))
        self._of_image = of_image
        self.weights: NDArray[np.float64] = rng.multinomial(
            len(names), share, size=RESAMPLES
        ).astype(np.float64)[:, of_image]

    def mean(self, values: Sequence[float] | NDArray[Any]) -> Estimate:
        """Mean of the values that are not NaN."""
        x = np.asarray(values, dtype=np.float64)
        known = ~np.isnan(x)
        if not known.any():
            return Estimate.absent("no image that it applies to")
        if not self._several(known):
            return Estimate(value=float(x[known].mean()), n=int(known.sum()))
        weights = self.weights[:, known]
        totals = weights.sum(axis=1)
        means = (weights @ x[known])[totals > 0] / totals[totals > 0]
        return self._percentiles(float(x[known].mean()), means, int(known.sum()))

    def median(self, values: Sequence[float] | NDArray[Any]) -> Estimate:
        """Median of the values that are not NaN."""
        x = np.asarray(values, dtype=np.float64)
        known = ~np.isnan(x)
        if not known.any():
            return Estimate.absent("no image that it applies to")
        if not self._several(known):
            return Estimate(value=float(np.median(x[known])), n=int(known.sum()))
        order = np.argsort(x[known], kind="stable")
        ordered = x[known][order]
        running = self.weights[:, known][:, order].cumsum(axis=1)
        running = running[running[:, -1] > 0]
        lower = (running < running[:, -1:] / 2).sum(axis=1)
        upper = (running <= running[:, -1:] / 2).sum(axis=1).clip(max=len(ordered) - 1)
        medians = (ordered[lower] + ordered[upper]) / 2
        return self._percentiles(float(np.median(ordered)), medians, len(ordered))

    def _several(self, known: NDArray[np.bool_]) -> bool:
        """Whether the known values are of two prompts or more, so that they have an interval."""
        return len(np.unique(self._of_image[known])) > 1

    @staticmethod
    def _percentiles(value: float, resampled: NDArray[Any], n: int) -> Estimate:
        low, high = np.percentile(resampled, _TAILS)
        return Estimate(value=value, low=float(low), high=float(high), n=n)


def around(value: float, resampled: Sequence[float] | NDArray[Any], n: int) -> Estimate:
    """The value ± 1.96 bootstrap standard errors.

    For distances between sets: their resamples are biased upwards, so percentiles would miss the
    value itself.

    Source: Efron and Tibshirani 1993, sec. 13.2 (standard normal interval).
    """
    error = 1.96 * float(np.std(np.asarray(resampled), ddof=1))
    return Estimate(value=value, low=value - error, high=value + error, n=n)
