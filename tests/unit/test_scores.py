"""Structure and texture against independent references; the random control."""

import pytest
import torch
from torch import Tensor

from stepvar_patch.scores.norm import norm
from stepvar_patch.scores.random import random_score
from stepvar_patch.scores.structure import (
    principal_directions,
    structure_edges,
    structure_score,
)
from stepvar_patch.scores.texture import TextureFilter, texture_score


def spread_along(axes: tuple[float, ...], rows: int = 2, n: int = 60, width: int = 12) -> Tensor:
    """Tokens whose covariance has exactly the eigenvalues ``axes²`` in a random basis, and a
    large mean.
    """
    generator = torch.Generator().manual_seed(len(axes))
    out = []
    for _ in range(rows):
        noise = torch.randn(n, len(axes), generator=generator, dtype=torch.float64)
        noise -= noise.mean(0)
        tokens = torch.linalg.qr(noise).Q * torch.tensor(axes, dtype=torch.float64)
        basis = torch.linalg.qr(torch.randn(width, len(axes), generator=generator).double()).Q
        out.append(tokens @ basis.T + 30)
    return torch.stack(out).float()


def eigenvectors(x: Tensor, count: int) -> Tensor:
    centred = x.double() - x.double().mean(1, keepdim=True)
    return torch.linalg.eigh(centred.mT @ centred).eigenvectors.flip(-1)[..., :count]


def test_power_iteration_finds_the_first_direction() -> None:
    """The first two eigenvalues differ by 20 %."""
    x = spread_along((1.2**0.5 * 4, 4, 2, 1, 0.5))
    v = principal_directions(x, iterations=20)
    cosine = (v.double() * eigenvectors(x, 1)).sum(1).abs()
    assert (cosine > 0.999).all()


def test_five_iterations_choose_the_same_tokens_on_separated_features() -> None:
    x = spread_along((4, 2, 1, 0.5), n=400)
    fast = structure_score(x, principal_directions(x))
    exact = structure_score(x, eigenvectors(x, 1).float())
    for a, b in zip(fast, exact, strict=True):
        shared = set(a.topk(200).indices.tolist()) & set(b.topk(200).indices.tolist())
        assert len(shared) > 0.99 * 200


def test_several_components_span_the_principal_subspace() -> None:
    x = spread_along((8, 4, 2, 0.2))
    v = principal_directions(x, iterations=20, components=3)
    torch.testing.assert_close(v.mT @ v, torch.eye(3).expand(2, 3, 3), atol=1e-4, rtol=0)
    exact = structure_score(x, eigenvectors(x, 3).float())
    torch.testing.assert_close(structure_score(x, v), exact, atol=1e-3, rtol=1e-3)


def test_a_warm_start_saves_iterations_and_a_useless_one_is_ignored() -> None:
    x = spread_along((1.2**0.5 * 4, 4, 2, 1, 0.5))
    exact = eigenvectors(x, 1)
    warm = principal_directions(x, iterations=1, start=exact.float())
    assert ((warm.double() * exact).sum(1).abs() > 0.9999).all()
    cold = principal_directions(x, iterations=3)
    for useless in (torch.zeros(2, 12, 1), torch.full((2, 12, 1), float("nan"))):
        assert torch.equal(principal_directions(x, iterations=3, start=useless), cold)


def test_rows_do_not_influence_each_other() -> None:
    x = spread_along((4, 2, 1), rows=3)
    alone = structure_score(x[1:2], principal_directions(x[1:2]))
    together = structure_score(x, principal_directions(x))
    torch.testing.assert_close(together[1:2], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("filter", ["mean3", "laplacian", "haar"])
def test_constant_features_score_exactly_zero(filter: TextureFilter) -> None:
    x = torch.randn(2, 1, 16, generator=torch.Generator().manual_seed(0)).mul(100).expand(2, 35, 16)
    assert torch.equal(
        structure_score(x, principal_directions(x, components=2)), torch.zeros(2, 35)
    )
    assert torch.equal(texture_score(x, (5, 7), filter), torch.zeros(2, 35))


def test_mean3_counts_only_cells_inside() -> None:
    x = torch.randn(1, 35, 4, generator=torch.Generator().manual_seed(1))
    maps = x[0].view(5, 7, 4)
    expected = torch.zeros(5, 7)
    for y in range(5):
        for i in range(7):
            around = maps[max(0, y - 1) : y + 2, max(0, i - 1) : i + 2].flatten(0, 1)
            expected[y, i] = (maps[y, i] - around.mean(0)).square().sum()
    torch.testing.assert_close(texture_score(x, (5, 7))[0].view(5, 7), expected)


@pytest.mark.parametrize("filter", ["mean3", "laplacian", "haar"])
def test_texture_is_high_where_the_map_is_rough(filter: TextureFilter) -> None:
    maps = torch.zeros(8, 10)
    maps[:, 5:] = (torch.arange(8)[:, None] + torch.arange(5)) % 2
    score = texture_score(maps.reshape(1, 80, 1), (8, 10), filter)[0].view(8, 10)
    assert score[:, 6:].min() > score[:, :4].max()


def test_laplacian_and_haar_have_their_textbook_values() -> None:
    maps = torch.zeros(1, 5, 5)
    maps[0, 2, 2] = 1.0
    laplacian = texture_score(maps.reshape(1, 25, 1), (5, 5), "laplacian")[0].view(5, 5)
    assert laplacian[2, 2] == 16
    assert laplacian[1, 2] == laplacian[2, 3] == 1
    assert laplacian.sum() == 20
    haar = texture_score(maps.reshape(1, 25, 1), (5, 5), "haar")[0].view(5, 5)
    assert torch.equal(haar.nonzero(), torch.tensor([[2, 2], [2, 3], [3, 2], [3, 3]]))
    assert haar.max() == haar[2, 3] == 0.75


def test_norm_is_the_length() -> None:
    assert norm(torch.tensor([[[3.0, 4.0], [0.0, 1.0]]]), (1, 2)).tolist() == [[5.0, 1.0]]


def test_random_scores_depend_on_seed_scale_and_call_only() -> None:
    base = random_score(3, 1, 500, 7)
    assert torch.equal(base, random_score(3, 1, 500, 7))
    assert torch.equal(base[:100], random_score(3, 1, 100, 7))
    for other in (
        random_score(4, 1, 500, 7),
        random_score(3, 2, 500, 7),
        random_score(3, 1, 500, 8),
    ):
        assert not torch.equal(base, other)
    assert 0.45 < base.mean() < 0.55
    assert len(base.unique()) == 500


def test_edges_of_the_structure_are_where_two_regions_meet() -> None:
    grid = (6, 9)
    regions = torch.zeros(6, 9, 1)
    regions[:, 4:] = 1
    x = (regions * torch.randn(16)).view(1, 54, 16)
    score = structure_edges(x, principal_directions(x), grid).view(grid)
    assert (score[:, 3:5] > 0.5).all()
    torch.testing.assert_close(score[:, :3], torch.zeros(6, 3))
    torch.testing.assert_close(score[:, 5:], torch.zeros(6, 4))


def test_edges_see_every_direction_and_the_border() -> None:
    grid = (5, 7)
    y, x = torch.meshgrid(torch.arange(5.0), torch.arange(7.0), indexing="ij")
    tokens = torch.stack([3 * x.flatten(), 2 * y.flatten()], dim=1)[None]
    score = structure_edges(tokens, torch.eye(2)[None], grid).view(grid)
    assert score[2, 3] == pytest.approx((6**2 + 4**2) ** 0.5)
    assert score[0, 3] == pytest.approx((6**2 + 2**2) ** 0.5)
