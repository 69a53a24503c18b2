"""Quality against dense: PSNR, SSIM and bit agreement on cases with known answers."""

import pytest
import torch

from stepvar_patch.experiments.metrics import ssim as ssim_module
from stepvar_patch.experiments.metrics.bit_agreement import bit_agreement, first_divergence
from stepvar_patch.experiments.metrics.psnr import CAP_DB, psnr
from stepvar_patch.experiments.metrics.ssim import ssim


def picture(seed: int = 0, side: int = 24) -> torch.Tensor:
    return torch.rand(1, 3, side, side + 4, generator=torch.Generator().manual_seed(seed))


def test_psnr_of_a_known_error() -> None:
    x = picture() * 0.5
    assert float(psnr(x + 0.1, x)) == pytest.approx(20.0, abs=1e-4)
    assert float(psnr(x + 0.01, x)) == pytest.approx(40.0, abs=1e-3)
    assert psnr(x, x) == CAP_DB


def test_ssim_of_constants_is_the_luminance_term() -> None:
    a, b = torch.full((1, 3, 16, 16), 0.2), torch.full((1, 3, 16, 16), 0.6)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert float(ssim(a, b)) == pytest.approx(expected, rel=1e-6)


def test_ssim_is_one_only_for_equal_pictures_and_falls_with_noise() -> None:
    x = picture()
    assert float(ssim(x, x)) == pytest.approx(1.0, abs=1e-12)
    little, much = (float(ssim((x + s * picture(1)).clamp(0, 1), x)) for s in (0.1, 0.8))
    assert 1 > little > much
    assert ssim(x, 1 - x) < 0


def test_ssim_of_one_window_equals_the_formula() -> None:
    x, y = picture(2, 11)[..., :11], picture(3, 11)[..., :11]
    offsets = torch.arange(11, dtype=torch.float64) - 5
    line = torch.exp(-(offsets**2) / 4.5)
    weight = torch.outer(line, line) / line.sum() ** 2
    luma = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)[:, None, None]
    a, b = ((luma * p[0].double()).sum(0) for p in (x, y))
    mean_a, mean_b = ((weight * p).sum() for p in (a, b))
    va, vb = ((weight * (p - m) ** 2).sum() for p, m in ((a, mean_a), (b, mean_b)))
    cov = (weight * (a - mean_a) * (b - mean_b)).sum()
    c1, c2 = 1e-4, 9e-4
    expected = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
    expected /= (mean_a**2 + mean_b**2 + c1) * (va + vb + c2)
    assert float(ssim(x, y)) == pytest.approx(float(expected), rel=1e-9)


def test_pictures_of_a_batch_are_measured_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = (torch.cat([picture(seed + k) for k in range(5)]) for seed in (0, 10))
    monkeypatch.setitem(ssim_module._PIXELS_AT_ONCE, "cpu", 2 * 24 * 28)
    for metric in (psnr, ssim):
        alone = [float(metric(a[None], b[None])) for a, b in zip(x, y, strict=True)]
        assert metric(x, y).tolist() == pytest.approx(alone, rel=1e-12)


def test_ssim_refuses_what_is_smaller_than_its_window() -> None:
    with pytest.raises(ValueError, match="not 10 × 14"):
        ssim(picture(0, 10), picture(0, 10))


def test_bit_agreement_counts_signs_and_nothing_drawn_agrees_with_none() -> None:
    reference = torch.tensor([1.0, -1.0, 1.0, -1.0]).view(4, 1, 1)
    assert bit_agreement(reference * 0.25, reference) == 1
    assert bit_agreement(torch.tensor([1.0, 1.0, 0.0, -1.0]).view(4, 1, 1), reference) == 0.5


def test_the_first_divergence_is_a_scale_that_differs_or_is_missing() -> None:
    assert first_divergence([1.0, 1.0, 0.9, None]) == 2
    assert first_divergence([1.0, None]) == 1
    assert first_divergence([1.0, 1.0]) is None
