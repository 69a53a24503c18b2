"""Scores to keep sets."""

import logging
from itertools import pairwise

import pytest
import torch

from stepvar_patch import select
from stepvar_patch.select import (
    cells,
    energy_counts,
    lattice_score,
    min_coverage,
    ranks,
    split_quota,
    top,
    top_each,
)
from stepvar_patch.upsample import nearest_source
from tests.toy import lattice

GRID = (6, 8)
N = 48


def scores(rows: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.rand(rows, N, generator=torch.Generator().manual_seed(seed))


def test_top_takes_the_highest_in_spatial_order() -> None:
    s = scores()
    keep = top(s, 10, GRID)
    rows = keep.indices.view(3, 10)
    assert keep.counts == (10, 10, 10)
    assert (rows.diff(dim=1) > 0).all()
    for row, kept in zip(s, rows, strict=True):
        dropped = torch.ones(N, dtype=torch.bool).index_fill(0, kept, False)
        assert row[kept].min() > row[dropped].max()


def test_ties_go_to_the_lower_position() -> None:
    s = torch.zeros(1, N)
    s[0, [5, 9, 20]] = 1.0
    assert top(s, 2, GRID).indices.tolist() == [5, 9]
    assert top(s, 5, GRID).indices.tolist() == [0, 1, 5, 9, 20]


@pytest.mark.parametrize("grid", [(16, 16), (8, 32), (37, 111), (9, 3)])
@pytest.mark.parametrize("share", [0.06, 0.25, 0.5, 0.9])
def test_the_lattice_leaves_no_hole(grid: tuple[int, int], share: float) -> None:
    """No position is farther from a kept one than 1.5 spacings of a perfect lattice."""
    h, w = grid
    count = max(1, round(share * h * w))
    keep = lattice(grid, count)
    assert keep.counts == (count,)
    flat = keep.indices[nearest_source(keep, grid)[0]]
    position = torch.arange(h * w)
    distance = ((position // w - flat // w) ** 2 + (position % w - flat % w) ** 2).sqrt()
    assert distance.max() <= 1.5 * (h * w / count) ** 0.5


def test_lattices_are_nested() -> None:
    sets = [set(lattice(GRID, count).indices.tolist()) for count in range(1, N + 1)]
    assert all(a < b for a, b in pairwise(sets))
    assert len(set(lattice_score(GRID).tolist())) == N


def test_scores_that_say_nothing_give_a_lattice() -> None:
    s = scores()
    s[1] = 0.25
    keep = top(s, 9, GRID)
    assert torch.equal(keep.rows(1, 2).indices, lattice(GRID, 9).indices)
    assert torch.equal(keep.rows(0, 1).indices, top(scores(), 9, GRID).rows(0, 1).indices)


def test_nan_gives_a_lattice_and_one_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select, "_NAN_WATCH", select._NanWatch())
    s = scores()
    s[2, 7] = float("nan")
    with caplog.at_level(logging.WARNING, logger="stepvar_patch.select"):
        keep = top(s, 9, GRID)
        top(s, 9, GRID)
    assert torch.equal(keep.rows(2, 3).indices, lattice(GRID, 9).indices)
    assert torch.equal(keep.rows(0, 1).indices, top(scores(), 9, GRID).rows(0, 1).indices)
    assert [record.message for record in caplog.records if "NaN" in record.message] != []
    assert len(caplog.records) == 1


def test_energy_counts_are_the_shortest_sufficient_prefix() -> None:
    s = scores()
    counts = energy_counts(s, 0.5, GRID).tolist()
    keep = top_each(s, counts, GRID)
    assert keep.counts == tuple(counts)
    for row, kept in enumerate(keep.rows(i, i + 1).indices for i in range(3)):
        energy = s[row, kept].double()
        total = s[row].double().sum()
        assert energy.sum() >= 0.5 * total
        assert energy.sum() - energy.min() < 0.5 * total
    assert energy_counts(s, 1.0, GRID).tolist() == [N] * 3
    assert energy_counts(torch.ones(1, N), 0.25, GRID).tolist() == [12]


def test_rows_with_counts_of_their_own_keep_what_each_keeps_alone() -> None:
    s = torch.cat([scores(), torch.ones(1, N)])
    for counts in ((9, 5, N, 12), (7, 7, 7, 7)):
        keep = top_each(s, counts, GRID)
        assert keep.counts == counts
        for row, count in enumerate(counts):
            alone = top(s[row : row + 1], count, GRID)
            assert torch.equal(keep.rows(row, row + 1).indices, alone.indices)


@pytest.mark.parametrize("cell", [2, 3, 5])
def test_min_coverage_keeps_one_token_per_cell(cell: int) -> None:
    s = scores()
    count = cells(GRID, cell)
    keep = top(min_coverage(s, GRID, cell), count, GRID)
    for row, kept in enumerate(keep.indices.view(3, count)):
        squares = {(int(i) // 8 // cell, int(i) % 8 // cell) for i in kept}
        assert len(squares) == count
        for i in kept:
            y, x = int(i) // 8 // cell * cell, int(i) % 8 // cell * cell
            assert s[row, i] == s[row].view(6, 8)[y : y + cell, x : x + cell].max()


def test_split_quota_shares_the_budget() -> None:
    first, second = scores(seed=1), scores(seed=2)
    keep = top(split_quota(first, second, 10, 0.3, GRID), 10, GRID).indices.view(3, 10)
    by_first = top(first, 3, GRID).indices.view(3, 3)
    for row in range(3):
        chosen = set(by_first[row].tolist())
        rest = second[row].clone()
        rest[by_first[row]] = -1
        assert set(keep[row].tolist()) == chosen | set(rest.topk(7).indices.tolist())
    assert torch.equal(
        top(split_quota(first, second, 10, 0.0, GRID), 10, GRID).indices,
        top(second, 10, GRID).indices,
    )
    assert torch.equal(
        top(split_quota(first, second, 10, 1.0, GRID), 10, GRID).indices,
        top(first, 10, GRID).indices,
    )


def test_ranks_are_even_steps_in_score_order() -> None:
    s = scores(1)
    assert torch.equal(ranks(s).argsort(), s.argsort())
    assert ranks(s).sort().values[0].tolist() == [i / N for i in range(N)]
