"""Packed tokens: the kept positions of every row, laid end to end.

Shape legend: B images, b rows (images × guidance rows), N positions of a scale, M kept per row, T
packed total, C width.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from infinity.ops.fused.spread import take


@dataclass(frozen=True)
class KeepSet:
    """Positions of one scale that are computed, per row.

    Attributes:
        indices: ``(sum(counts),)`` int64 flat positions (row-major in the grid), ascending inside
            a row.
        counts: kept positions per row, on the host; every row keeps at least one.
        places: of every position, which of its row's kept ones it is (−1: none), if whoever chose
            them knows.
    """

    indices: Int64[Tensor, " total"]
    counts: tuple[int, ...]
    places: Int32[Tensor, "rows n"] | None = None

    def __post_init__(self) -> None:
        if not self.counts or min(self.counts) < 1:
            raise ValueError(
                f"a keep set needs at least one position per row, got counts {self.counts}"
            )
        if sum(self.counts) != self.indices.shape[0]:
            raise ValueError(
                f"keep set counts {self.counts} do not add up to {self.indices.shape[0]} indices"
            )

    @staticmethod
    def of_rows(
        indices: Int64[Tensor, "rows kept"], places: Int32[Tensor, "rows n"] | None = None
    ) -> "KeepSet":
        """Equal counts: one row of ascending positions per row of ``indices``."""
        rows, kept = indices.shape
        return KeepSet(indices.reshape(-1), (kept,) * rows, places)

    @property
    def uniform(self) -> bool:
        return len(set(self.counts)) == 1

    def row_ids(self) -> Int64[Tensor, " total"]:
        """Row of every kept position; equal counts need no copy from the host."""
        total, device = self.indices.shape[0], self.indices.device
        if self.uniform:
            return torch.arange(total, device=device) // self.counts[0]
        rows = torch.arange(len(self.counts), device=device)
        counts = torch.tensor(self.counts, device=device)
        return rows.repeat_interleave(counts, output_size=total)

    def starts(self) -> Int64[Tensor, " rows"]:
        """Index of every row's first kept position; equal counts need no copy from the host."""
        rows, device = len(self.counts), self.indices.device
        if self.uniform:
            return torch.arange(rows, device=device) * self.counts[0]
        return torch.tensor((0, *self.counts[:-1]), device=device).cumsum(0)

    def tiled(self, times: int) -> "KeepSet":
        """The same sets for ``times`` consecutive blocks of rows (guidance rows share their
        image's set).
        """
        return self if times == 1 else KeepSet(self.indices.repeat(times), self.counts * times)

    def rows(self, start: int, stop: int) -> "KeepSet":
        first, last = sum(self.counts[:start]), sum(self.counts[:stop])
        return KeepSet(self.indices[first:last], self.counts[start:stop])


@dataclass(frozen=True)
class PackedTokens:
    """Tokens of all rows without padding.

    Attributes:
        x: ``(T, C)``.
        cu_seqlens: int32 ``(b + 1)`` row boundaries, starting at 0, on the device of ``x``.
        max_seqlen: longest row, on the host.
        indices: int64 ``(T,)`` flat grid position of every token.
        counts: tokens per row, on the host.
        places: as of the :class:`KeepSet` that the tokens were packed by.
    """

    x: Float[Tensor, "total width"]
    cu_seqlens: Int32[Tensor, " b1"]
    max_seqlen: int
    indices: Int64[Tensor, " total"]
    counts: tuple[int, ...]
    places: Int32[Tensor, "rows n"] | None = None

    @property
    def rows(self) -> int:
        return len(self.counts)

    @property
    def uniform(self) -> bool:
        """Every row has ``max_seqlen`` tokens: the packed layout is a view of ``(b, max_seqlen,
        C)``.
        """
        return len(self.indices) == self.rows * self.max_seqlen

    def with_x(self, x: Float[Tensor, "total width"]) -> "PackedTokens":
        return replace(self, x=x)

    def row_ids(self) -> Int64[Tensor, " total"]:
        """Row of every token."""
        if self.uniform:
            return torch.arange(self.x.shape[0], device=self.x.device) // self.max_seqlen
        lengths = self.cu_seqlens.diff().long()
        ids = torch.arange(self.rows, device=self.x.device)
        return ids.repeat_interleave(lengths, output_size=self.x.shape[0])

    def slice_rows(self, start: int, stop: int) -> "PackedTokens":
        """Rows ``[start, stop)`` as a view."""
        if (start, stop) == (0, self.rows):
            return self
        first, last = sum(self.counts[:start]), sum(self.counts[:stop])
        counts = self.counts[start:stop]
        return PackedTokens(
            self.x[first:last],
            self.cu_seqlens[start : stop + 1] - first,
            max(counts),
            self.indices[first:last],
            counts,
        )


def pack_all(x: Float[Tensor, "b n width"]) -> PackedTokens:
    """All positions of every row: a view of ``x``, no copy."""
    rows, n, _ = x.shape
    positions = torch.arange(n, device=x.device)
    return PackedTokens(
        x.reshape(rows * n, -1),
        _even_boundaries(rows, n, x.device),
        n,
        positions.expand(rows, n).reshape(-1),
        (n,) * rows,
    )


def pack(x: Float[Tensor, "b n width"], keep: KeepSet) -> PackedTokens:
    """The kept positions of every row.

    Raises:
        ValueError: ``keep`` describes another number of rows than ``x`` has.
    """
    _check_rows(x, keep)
    rows, n, _ = x.shape
    total = keep.indices.shape[0]
    if keep.uniform:
        return places_only(x, keep).with_x(take(x, keep.indices))
    cu_seqlens = torch.full((rows + 1,), total, device=x.device, dtype=torch.int32)
    cu_seqlens[:-1] = keep.starts()
    return PackedTokens(
        x.reshape(rows * n, -1).index_select(0, keep.row_ids() * n + keep.indices),
        cu_seqlens,
        max(keep.counts),
        keep.indices,
        keep.counts,
    )


def _check_rows(x: Float[Tensor, "b n width"], keep: KeepSet) -> None:
    if len(keep.counts) != len(x):
        raise ValueError(f"keep set has {len(keep.counts)} rows, the tokens have {len(x)}")


def places_only(x: Float[Tensor, "b n width"], keep: KeepSet) -> PackedTokens:
    """The kept positions of equally many tokens per row, ``(T, 0)`` features, on the device of
    ``x``: for kernels that gather while they read.

    Raises:
        ValueError: ``keep`` describes another number of rows than ``x`` has, or unequal ones.
    """
    _check_rows(x, keep)
    if not keep.uniform:
        raise ValueError(f"keep set has rows of {keep.counts} positions, expected equally many")
    rows, count, total = len(keep.counts), keep.counts[0], len(keep.indices)
    boundaries = _even_boundaries(rows, count, x.device)
    nothing = x.new_empty(total, 0)
    return PackedTokens(nothing, boundaries, count, keep.indices, keep.counts, keep.places)


_MOST_BOUNDARIES = 1024
_BOUNDARIES: dict[tuple[int, int, torch.device], Int32[Tensor, " b1"]] = {}


def _even_boundaries(rows: int, count: int, device: torch.device) -> Int32[Tensor, " b1"]:
    """``0, count, 2·count …``, made once and kept for good, as recorded calls read it where it
    lies; what is made while a graph is recorded belongs to the graph. Counts that follow from the
    data are many, so that there is an end to keeping.
    """
    key = (rows, count, device)
    if key in _BOUNDARIES:
        return _BOUNDARIES[key]
    made = torch.arange(0, rows * count + 1, count, dtype=torch.int32, device=device)
    recorded = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    if not recorded and len(_BOUNDARIES) < _MOST_BOUNDARIES:
        _BOUNDARIES[key] = made
    return made


def unpack(tokens: PackedTokens, base: Float[Tensor, "b n width"]) -> Float[Tensor, "b n width"]:
    """``base`` with the packed tokens written over their positions (a new tensor)."""
    rows, n, width = base.shape
    flat = base.reshape(rows * n, width)
    return flat.index_copy(0, tokens.row_ids() * n + tokens.indices, tokens.x.to(base.dtype)).view(
        rows, n, width
    )
