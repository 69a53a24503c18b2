"""The kernels that draw random numbers and bits against their torch functions."""

import pytest
import torch
from kernel_cases import devices, draw

from infinity.ops.fused import sample, uniform
from infinity.sampling import bits
from infinity.sampling.noise import philox_4x32


@devices
@pytest.mark.parametrize("count", [1, 7, 64, 5000])
def test_philox(device: str, count: int) -> None:
    seeds = torch.tensor([0, 5, (1 << 62) + 12345], device=device)
    block = torch.arange(-(-count // 4), device=device)[None]
    zero = torch.zeros_like(block)
    words = philox_4x32(
        (block, zero, zero + 11, zero), (seeds[:, None] & 0xFFFFFFFF, seeds[:, None] >> 32)
    )
    exact = ((torch.stack(words, -1) >> 9).float() + 0.5) * 2.0**-23
    assert torch.equal(uniform.philox_uniform(seeds, 11, count), exact.flatten(1)[:, :count])


@devices
@pytest.mark.parametrize("guidance", [None, 3.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.97), (1, 0.0), (900, 0.5), (0, 0.0), (2, 1.0)])
def test_draw_bits(
    device: str,
    guidance: float | None,
    top_k: int,
    top_p: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits = 3 * draw(24, 5, 2, device=device)
    logits[0] = 1.0
    draws = -torch.rand(2, 30, 2, generator=torch.Generator().manual_seed(0)).to(device).log()
    how = bits.Draw(0.7, guidance, top_k, top_p)
    drawn, guided = bits.draw_bits(logits, draws, how)
    monkeypatch.setattr(bits, "usable", lambda *_: False)
    exact, wanted = bits.draw_bits(logits, draws, how)
    assert torch.equal(drawn, exact)
    assert torch.equal(guided, wanted)


@pytest.mark.parametrize("x", [0.1, 0.03, 0.5, 1 - 0.97, 0.0, 1.0])
def test_a_bound_in_fp32_parts_fp32_numbers_as_the_exact_one_does(x: float) -> None:
    bound = torch.tensor(sample._rounded_down(x))
    assert bound.double() <= x
    assert torch.nextafter(bound, torch.tensor(2.0)).double() > x
