"""The kernels that score, choose and put back against their torch functions."""

import pytest
import torch
from kernel_cases import DTYPE, devices, draw

from infinity.ops.fused import mean_distance, nearest, principal, roughness, spread, top
from infinity.tokens import KeepSet
from stepvar_patch import upsample
from stepvar_patch.scores import structure


@devices
@pytest.mark.parametrize(
    ("n", "count"), [(1, 1), (7, 3), (64, 64), (100, 37), (1600, 800), (4096, 4095)]
)
def test_top_scores(device: str, n: int, count: int) -> None:
    scores = draw(5, n, device=device)
    scores[0] = (2 * scores[0]).round()
    scores[1], scores[2, n // 2], scores[3] = 3.0, float("nan"), 0.0
    scores[3, ::2] = -0.0
    even = draw(n, device=device)
    fast, exact = (f(scores, even, count) for f in (top.top_scores, top.reference))
    for name in ("indices", "places", "bad"):
        assert torch.equal(getattr(fast, name), getattr(exact, name)), name


@devices
@pytest.mark.parametrize(("n", "width"), [(1, 64), (37, 130), (200, 96)])
def test_mean_distance(device: str, n: int, width: int) -> None:
    x = draw(2, n, width, device=device) + 5
    x[1] = x[1, :1].clone()
    fast, exact = (f(x) for f in (mean_distance.mean_distance, mean_distance.reference))
    torch.testing.assert_close(fast[0], exact[0], rtol=1e-5, atol=1e-4)
    assert not fast[1].any()


@devices
@pytest.mark.parametrize("iterations", [1, 5])
@pytest.mark.parametrize("started", [False, True])
def test_first_direction(
    device: str, iterations: int, started: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = draw(3, 37, 130, device=device) + 5
    x[1] = x[1, :1].clone()
    start = draw(3, 130, device=device) if started else None
    if start is not None:
        start[2] = 0
    fast = principal.first_direction(x, iterations, start)
    length = principal.projection_length(x, fast)
    monkeypatch.setattr(structure, "_fused", lambda x: False)
    given = None if start is None else start[:, :, None]
    exact = structure.principal_directions(x, iterations=iterations, start=given)
    torch.testing.assert_close(fast, exact[:, :, 0], rtol=1e-4, atol=1e-5)
    assert not fast[1].any()
    torch.testing.assert_close(length, structure.structure_score(x, exact), rtol=1e-3, atol=1e-4)


GRIDS = [(1, 1), (1, 7), (9, 1), (5, 7), (8, 8), (12, 20)]


@devices
@pytest.mark.parametrize("grid", GRIDS)
def test_roughness(device: str, grid: tuple[int, int]) -> None:
    x = draw(2, grid[0] * grid[1], 40, device=device) + 3
    x[1] = 1.1
    fast, exact = (f(x, grid) for f in (roughness.roughness, roughness.reference))
    torch.testing.assert_close(fast[0], exact[0], rtol=1e-5, atol=1e-4)
    assert not fast[1].any()


@devices
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_nearest_places(
    device: str, grid: tuple[int, int], share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = grid[0] * grid[1]
    count = max(1, round(share * n))
    generator = torch.Generator().manual_seed(n)
    chosen = torch.stack(
        [torch.randperm(n, generator=generator)[:count].sort().values for _ in range(3)]
    ).to(device)
    chosen[0] = chosen[0].flip(0)
    fast = nearest.nearest_places(chosen, grid)
    monkeypatch.setattr(upsample, "usable", lambda *_: False)
    assert torch.equal(fast, upsample.nearest_source(KeepSet.of_rows(chosen), grid))


@devices
@pytest.mark.parametrize(
    ("grid", "old_grid"), [((6, 7), (4, 5)), ((4, 4), (4, 4)), ((9, 5), (3, 8))]
)
def test_taking_tokens_out_and_putting_them_back(
    device: str, grid: tuple[int, int], old_grid: tuple[int, int]
) -> None:
    n, n_old = grid[0] * grid[1], old_grid[0] * old_grid[1]
    before, old = draw(2, n, 40, device=device), draw(2, n_old, 40, device=device)
    even = draw(n, device=device)
    chosen = top.reference(draw(2, n, device=device), even, 11)
    fresh = spread.take(before, chosen.indices.flatten())
    rows = torch.arange(2, device=device)[:, None]
    assert torch.equal(fresh, before[rows, chosen.indices].flatten(0, 1))
    shuffled = chosen.indices[:, torch.randperm(11).to(device)]
    for indices in (shuffled, chosen.indices):
        places = spread.places_of(indices, n)
        assert torch.equal(places, spread.places_reference(indices, n))
    gates = draw(2, 6, 40, device=device)[:, 3]
    for given, gate in ((fresh, None), (fresh.to(DTYPE[device]), gates)):
        words = (before, given, places, old, grid, old_grid, gate)
        fast, exact = (f(*words) for f in (spread.area_filled, spread.area_filled_reference))
        torch.testing.assert_close(fast, exact, rtol=1e-6, atol=1e-6)
        assert torch.equal(fast[rows, chosen.indices], exact[rows, chosen.indices])
        assert not torch.equal(fast, before)
