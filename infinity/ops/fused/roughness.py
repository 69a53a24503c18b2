"""How much every token differs from the mean of its 3×3 surroundings, in one launch.

Shape legend: b rows, N = h·w positions, C width.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from infinity.ops.fused.support import kernel, power_of_two, triton, usable, warps_of

_STRIP = 8


def reference(x: Float[Tensor, "b n width"], grid: tuple[int, int]) -> Float[Tensor, "b n"]:
    """See :func:`roughness`."""
    # Relative to a token: exactly zero, not rounding noise, on a constant map.
    shifted = x.float() - x[:, :1].float()
    maps = shifted.unflatten(1, grid).permute(0, 3, 1, 2)
    high = maps - F.avg_pool2d(maps, 3, stride=1, padding=1, count_include_pad=False)
    return high.square().sum(1).flatten(1)


def roughness(x: Float[Tensor, "b n width"], grid: tuple[int, int]) -> Float[Tensor, "b n"]:
    """Squared distance of every token to the mean of the up to nine tokens around and including
    it, fp32.
    """
    if not usable(x, "roughness") or x.dtype != torch.float32:
        return reference(x, grid)
    x = x.contiguous()
    rows, n, width = x.shape
    h, w = grid
    out, block = x.new_empty(rows, n), power_of_two(width)
    _roughness_kernel[(-(-w // _STRIP), h, rows)](
        x, out, h, w, width, STRIP=_STRIP, BLOCK=block, num_warps=warps_of(block)
    )
    return out


if triton is not None:
    import triton.language as tl

    @kernel
    def _roughness_kernel(x_ptr, out_ptr, h, w, width, STRIP: tl.constexpr, BLOCK: tl.constexpr):
        row, y = tl.program_id(2).to(tl.int64), tl.program_id(1)
        first = tl.program_id(0) * STRIP
        c = tl.arange(0, BLOCK)
        inside = c < width
        base = x_ptr + row * h * w * width + c
        zero = tl.load(base, mask=inside, other=0.0)
        before = tl.zeros((BLOCK,), tl.float32)
        here = tl.zeros((BLOCK,), tl.float32)
        middle = tl.zeros((BLOCK,), tl.float32)
        tall = 3 - (y == 0).to(tl.int32) - (y == h - 1).to(tl.int32)
        for step in range(STRIP + 2):
            z = first + step - 1
            there = inside & (z >= 0) & (z < w)
            own = tl.load(base + (y * w + z) * width, mask=there, other=0.0)
            own = tl.where(there, own - zero, 0.0)
            up = tl.load(base + ((y - 1) * w + z) * width, mask=there & (y > 0), other=0.0)
            up = tl.where(there & (y > 0), up - zero, 0.0)
            down = tl.load(base + ((y + 1) * w + z) * width, mask=there & (y < h - 1), other=0.0)
            down = tl.where(there & (y < h - 1), down - zero, 0.0)
            after = up + own + down
            # ``middle`` is the token left of ``z``, whose surroundings are complete now.
            wide = 3 - (z <= 1).to(tl.int32) - (z >= w).to(tl.int32)
            rough = middle - (before + here + after) / (tall * wide)
            done = (step >= 2) & (z - 1 < w)
            tl.store(out_ptr + row * h * w + y * w + z - 1, tl.sum(rough * rough, 0), mask=done)
            before, here, middle = here, after, own
