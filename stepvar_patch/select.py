"""Scores to keep sets: how many tokens of a scale are computed, and which.

A score is ``(rows, N)``, higher = keep. Rules that shape the choice (:func:`min_coverage`,
:func:`split_quota`) turn scores into scores; :func:`top` and :func:`top_each` end the chain.
Nothing here waits for the device.
"""

import logging
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from infinity.ops.fused.top import top_scores
from infinity.schedule import Grid
from infinity.tokens import KeepSet

logger = logging.getLogger(__name__)

# 1/p and 1/p² of the plastic number p (p³ = p + 1): the most even additive lattice in two
# dimensions.
_STEP_X, _STEP_Y = 0.7548776662466927, 0.5698402909980532

_TIE_SLOPE = 2**-8


def lattice_score(grid: Grid, device: torch.device | str = "cpu") -> Float[Tensor, " n"]:
    """Score whose ``count`` highest positions are spread evenly over the grid, for every count.

    The sets are nested: more tokens add positions and move none. Values lie in (−1, 0] and differ.
    """
    h, w = grid
    y = torch.arange(h, dtype=torch.float64, device=device)[:, None]
    x = torch.arange(w, dtype=torch.float64, device=device)[None]
    return -((x * _STEP_X + y * _STEP_Y) % 1.0).flatten()


def spread_ties(scores: Float[Tensor, "rows n"], grid: Grid) -> Float[Tensor, "rows n"]:
    """Scores with a slope below 0.4 %, which spreads equal ones evenly over the grid.

    For scores of maps that were filled from kept tokens: positions with one source are equal, and
    rounding would decide among them.
    """
    slope = 1 + _TIE_SLOPE * lattice_score(grid, scores.device)
    return scores.float() * slope.float()


def top(scores: Float[Tensor, "rows n"], count: int, grid: Grid | None = None) -> KeepSet:
    """The ``count`` highest scores of every row, positions ascending.

    Ties go to the lower position. A row that holds a NaN, or whose scores are all equal, tells
    nothing about its tokens and gets a uniform lattice on ``grid`` (along the row if there is
    none); NaNs are logged, once per process.
    """
    spread = _spread(grid or (1, scores.shape[1]), scores.device, scores.dtype)
    chosen = top_scores(scores, spread, count)
    _NAN_WATCH.look(chosen.bad)
    return KeepSet.of_rows(chosen.indices, chosen.places)


def top_each(
    scores: Float[Tensor, "rows n"], counts: Sequence[int], grid: Grid | None = None
) -> KeepSet:
    """As :func:`top`, with a count for every row."""
    if len(set(counts)) == 1:
        return top(scores, counts[0], grid)
    rows = [top(scores[i : i + 1], count, grid) for i, count in enumerate(counts)]
    return KeepSet(torch.cat([row.indices for row in rows]), tuple(counts))


def energy_counts(
    scores: Float[Tensor, "rows n"], share: float, grid: Grid | None = None
) -> Int64[Tensor, " rows"]:
    """How many of its highest scores a row needs to reach ``share`` of their sum, on the device.

    Args:
        scores: non-negative energies.
        share: in (0, 1].
        grid: of the scale; see :func:`top`.

    Source: LD-Pruning's rule, spec pruning-methods §6.
    """
    usable = _usable(scores, grid)
    informative = (scores == usable).all(1, keepdim=True)
    energies = torch.where(informative, usable, 1.0).double()
    reached = energies.sort(dim=1, descending=True).values.cumsum(1)
    counts = (reached < share * reached[:, -1:] * (1 - 1e-12)).sum(1) + 1
    return counts.clamp(max=scores.shape[1])


def min_coverage(scores: Float[Tensor, "rows n"], grid: Grid, cell: int) -> Float[Tensor, "rows n"]:
    """``scores`` with the best token of every ``cell`` × ``cell`` square raised above all others.

    With at least as many tokens kept as there are squares (:func:`cells`), every square keeps one,
    which bounds the distance to the nearest kept token. Cells at the far borders may be smaller.
    """
    h, w = grid
    usable = _usable(scores, grid)
    squares = (
        F.pad(usable.view(-1, h, w), (0, -w % cell, 0, -h % cell), value=float("-inf"))
        .unfold(1, cell, cell)
        .unfold(2, cell, cell)
    )
    best = squares.flatten(3).argmax(3)
    y = torch.arange(best.shape[1], device=best.device)[:, None] * cell + best // cell
    x = torch.arange(best.shape[2], device=best.device)[None] * cell + best % cell
    return usable.scatter(1, (y * w + x).flatten(1), float("inf"))


def cells(grid: Grid, cell: int) -> int:
    """Number of ``cell`` × ``cell`` squares that cover the grid."""
    return -(-grid[0] // cell) * -(-grid[1] // cell)


def split_quota(
    first: Float[Tensor, "rows n"],
    second: Float[Tensor, "rows n"],
    count: int,
    share: float,
    grid: Grid,
) -> Float[Tensor, "rows n"]:
    """Score whose ``count`` highest are chosen by ``first`` for a ``share``, by ``second`` else.

    ``round(share · count)`` tokens are chosen by ``first``; ``second`` chooses among the others.
    """
    rank = ranks(_usable(second, grid))
    quota = round(share * count)
    if not quota:
        return rank
    return rank + 2.0 * _mask(top(first, quota, grid), rank.shape)


def ranks(scores: Tensor) -> Tensor:
    """Ranks in [0, 1), highest score highest; ties favour the lower position."""
    n = scores.shape[1]
    order = scores.sort(dim=1, descending=True, stable=True).indices
    steps = (torch.arange(n, 0, -1, device=scores.device, dtype=torch.float64) - 1) / n
    return torch.empty(scores.shape, device=scores.device, dtype=torch.float64).scatter_(
        1, order, steps.expand_as(order)
    )


def _mask(keep: KeepSet, shape: torch.Size) -> Bool[Tensor, "rows n"]:
    indices: Int64[Tensor, "rows kept"] = keep.indices.view(shape[0], -1)
    return torch.zeros(shape, dtype=torch.bool, device=indices.device).scatter_(1, indices, True)


def _usable(scores: Tensor, grid: Grid | None) -> Tensor:
    """``scores`` with the rows that say nothing replaced by an even spread."""
    bad = scores.isnan().any(1, keepdim=True)
    _NAN_WATCH.look(bad)
    flat = (scores == scores[:, :1]).all(1, keepdim=True)
    spread = _spread(grid or (1, scores.shape[1]), scores.device, scores.dtype)
    return torch.where(bad | flat, spread, scores)


_SPREADS: dict[tuple[Grid, torch.device, torch.dtype], Tensor] = {}


def _spread(grid: Grid, device: torch.device, dtype: torch.dtype) -> Float[Tensor, " n"]:
    """The lattice score, made once; what is made while a graph is recorded belongs to the graph."""
    key = (grid, device, dtype)
    if key in _SPREADS:
        return _SPREADS[key]
    spread = lattice_score(grid, device).to(dtype)
    if not (device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
        _SPREADS[key] = spread
    return spread


class _NanWatch:
    """Warns once about NaN scores without making the host wait for the device.

    On a GPU a flag travels to the host in the background and is read at a later call.
    """

    def __init__(self) -> None:
        self.warned = False
        self._pending: list[tuple[Tensor, torch.cuda.Event]] = []

    def look(self, bad: Tensor) -> None:
        """Notes rows that are ``bad``."""
        if self.warned or (bad.is_cuda and torch.cuda.is_current_stream_capturing()):
            return
        flag = bad.any()
        if flag.is_cuda:
            self._pending.append((flag.to("cpu", non_blocking=True), torch.cuda.Event()))
            self._pending[-1][1].record()
            if not self._pending[0][1].query():
                return
            flag = self._pending.pop(0)[0]
        if flag:
            self.warned = True
            self._pending.clear()
            logger.warning(
                "token scores hold NaN: these images keep a uniform lattice instead of their best "
                "tokens; the features themselves are not finite"
            )


_NAN_WATCH = _NanWatch()
