"""The nearest kept neighbour against brute force, and the restorations built on it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infinity.policy import RestoreContext, ScaleView
from infinity.tokens import KeepSet, PackedTokens, pack
from stepvar_patch.upsample import (
    code_base,
    code_copy,
    code_zero,
    nearest_change,
    nearest_source,
    nearest_state,
    zero_change,
)


def brute_force(kept: list[int], grid: tuple[int, int]) -> list[int]:
    """First (lowest) kept position at the smallest squared distance."""
    h, w = grid
    found = []
    for i in range(h * w):
        distances = [(i // w - k // w) ** 2 + (i % w - k % w) ** 2 for k in kept]
        found.append(distances.index(min(distances)))
    return found


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_sources_equal_brute_force(data: st.DataObject) -> None:
    grid = (data.draw(st.integers(1, 7)), data.draw(st.integers(1, 7)))
    n = grid[0] * grid[1]
    rows = [
        sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1, max_size=n)))
        for _ in range(data.draw(st.integers(1, 3)))
    ]
    keep = KeepSet(torch.tensor([i for row in rows for i in row]), tuple(map(len, rows)))
    assert nearest_source(keep, grid).tolist() == [brute_force(row, grid) for row in rows]


@pytest.mark.parametrize("grid", [(64, 64), (111, 37)])
def test_sources_of_large_grids_are_nearest(grid: tuple[int, int]) -> None:
    h, w = grid
    kept = torch.randperm(h * w, generator=torch.Generator().manual_seed(0))[: h * w // 3]
    keep = KeepSet.of_rows(kept.sort().values[None])
    y, x = torch.arange(h * w) // w, torch.arange(h * w) % w
    distance = (y[:, None] - y[keep.indices]) ** 2 + (x[:, None] - x[keep.indices]) ** 2
    chosen = nearest_source(keep, grid)[0]
    assert torch.equal(distance.gather(1, chosen[:, None])[:, 0], distance.amin(1))


GRID = (4, 5)
KEEPS = {
    "equal": KeepSet(torch.tensor([0, 7, 19, 3, 4, 12]), (3, 3)),
    "ragged": KeepSet(torch.tensor([0, 7, 19, 12]), (3, 1)),
    "all": KeepSet(torch.arange(20).repeat(2), (20, 20)),
}


def case(name: str, branch: str) -> tuple[PackedTokens, RestoreContext, torch.Tensor]:
    """Fresh packed values, the context, and for every position the packed index of its source."""
    generator = torch.Generator().manual_seed(3)
    before = torch.randn(2, 20, 6, generator=generator)
    packed = pack(before, KEEPS[name])
    fresh = packed.with_x(torch.randn(packed.x.shape, generator=generator))
    source = nearest_source(KEEPS[name], GRID) + packed.cu_seqlens[:-1, None].long()
    return fresh, RestoreContext(before, GRID, 3, 1, branch), source  # type: ignore[arg-type]


@pytest.mark.parametrize("name", KEEPS)
@pytest.mark.parametrize("branch", ["layer", "ffn"])
@pytest.mark.parametrize("restore", [nearest_state, nearest_change, zero_change])
def test_kept_positions_get_their_own_value(name: str, branch: str, restore: object) -> None:
    fresh, context, _ = case(name, branch)
    dense = restore(fresh, context)  # type: ignore[operator]
    assert dense.shape == context.before.shape
    assert torch.equal(pack(dense, KEEPS[name]).x, fresh.x)


@pytest.mark.parametrize("name", KEEPS)
def test_states_and_changes_are_copied_from_the_source(name: str) -> None:
    fresh, context, source = case(name, "layer")
    entered = pack(context.before, KEEPS[name]).x
    state, change = fresh.x[source], context.before + (fresh.x - entered)[source]
    torch.testing.assert_close(nearest_state(fresh, context), state)
    torch.testing.assert_close(nearest_change(fresh, context), change)


@pytest.mark.parametrize("name", KEEPS)
def test_in_a_branch_the_result_is_a_change(name: str) -> None:
    """Stream plus change gives what the whole-layer restoration would give."""
    fresh, context, source = case(name, "ffn")
    entered = pack(context.before, KEEPS[name]).x
    torch.testing.assert_close(nearest_change(fresh, context), fresh.x[source])
    torch.testing.assert_close(
        context.before + nearest_state(fresh, context), (entered + fresh.x)[source]
    )


def view(codes: torch.Tensor | None) -> ScaleView:
    return ScaleView(torch.zeros(2, 3, 8, 10), codes, torch.zeros(2, 20, 6), GRID, "cond")


@pytest.mark.parametrize("name", KEEPS)
def test_codes_are_copied_zeroed_or_repeated(name: str) -> None:
    keep = KEEPS[name]
    codes = torch.randn(len(keep.indices), 3, generator=torch.Generator().manual_seed(1))
    starts = torch.tensor((0, *keep.counts)).cumsum(0)
    source = nearest_source(keep, GRID)
    previous = torch.randn(2, 3, 2, 5, generator=torch.Generator().manual_seed(2))
    copied = code_copy(codes, keep, view(None))
    zeroed = code_zero(codes, keep, view(None))
    based = code_base(0.5)(codes, keep, view(previous))
    for row in range(2):
        kept = keep.rows(row, row + 1).indices
        for i in range(20):
            y, x = i // 5, i % 5
            own = (kept == i).nonzero()
            value = codes[starts[row] + source[row, i]]
            assert torch.equal(copied[row, i], value)
            assert torch.equal(zeroed[row, i], value if len(own) else torch.zeros(3))
            old = 0.5 * previous[row, :, y // 2, x]
            assert torch.equal(based[row, i], value if len(own) else old)


def test_repeated_codes_follow_the_patchified_layout() -> None:
    previous = torch.arange(2 * 3 * 8 * 10).view(2, 3, 8, 10).float()
    based = code_base(1.0)(
        torch.zeros(2, 12), KeepSet(torch.tensor([0, 0]), (1, 1)), view(previous)
    )
    assert based[1, 6].tolist() == [
        float(previous[1, c, 2 + dy, 2 + dx])
        for c in range(3)
        for dy in range(2)
        for dx in range(2)
    ]
    assert torch.equal(
        code_base(1.0)(torch.ones(2, 3), KeepSet(torch.tensor([0, 0]), (1, 1)), view(None)),
        code_zero(torch.ones(2, 3), KeepSet(torch.tensor([0, 0]), (1, 1)), view(None)),
    )
