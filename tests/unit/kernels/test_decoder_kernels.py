"""The decoder's kernels against their torch functions."""

import pytest
import torch
from kernel_cases import DTYPE, LIMIT, close, devices, draw

from infinity.ops.fused import group_norm


@devices
@pytest.mark.parametrize(("h", "w"), [(3, 5), (16, 16), (40, 37)])
@pytest.mark.parametrize(("channels", "groups"), [(32, 32), (64, 32), (96, 32), (48, 24)])
@pytest.mark.parametrize("programs", [4, group_norm._PROGRAMS])
def test_decoder_kernels(
    device: str,
    h: int,
    w: int,
    channels: int,
    groups: int,
    programs: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With few programs each takes several tiles, as on large maps."""
    monkeypatch.setattr(group_norm, "_PROGRAMS", programs)
    dtype = DTYPE[device]
    x, y = (draw(2, h * w, channels, device=device, dtype=dtype) for _ in range(2))
    x = x + 20
    bias, weight, shift = (draw(channels + i, device=device)[:channels] for i in range(3))
    total, moments = group_norm.add(x, y, bias)
    assert torch.equal(total, group_norm.reference_add(x, y, bias))
    same, again = group_norm.add(total, None, None)
    assert same is total
    close(again.mean, moments.mean, 1e-6)
    for offset in (None, bias):
        fast = group_norm.norm_silu(total, moments, offset, weight, shift, groups, 1e-6)
        exact = group_norm.reference_norm(total, offset, weight, shift, groups, 1e-6)
        close(fast, exact, max(LIMIT[dtype], 2e-5))
    grid = draw(2, h + 1, w + 1, 4 * channels, device=device, dtype=dtype) + 20
    big, moments = group_norm.interleave(grid)
    assert torch.equal(big, group_norm.reference_interleave(grid))
    _, again = group_norm.add(big, None, None)
    close(moments.mean, again.mean, 1e-6)
    close(moments.square, again.square, 1e-5)
