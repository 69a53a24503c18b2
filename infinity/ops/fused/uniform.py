"""Counter-based uniform numbers: Philox4x32-10 in one launch."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from infinity.ops.fused.support import kernel, triton

_BLOCK = 256


def philox_uniform(keys: Int64[Tensor, " images"], si: int, count: int) -> Float[Tensor, "b n"]:
    """``count`` uniform numbers in (0, 1) per key, on a grid of 2²³ points and exact in fp32.

    The same words as :func:`infinity.sampling.noise.philox_4x32` with counter ``(block, 0, si,
    0)``, four numbers per block.

    Args:
        keys: 63-bit seeds on a device where :func:`~infinity.ops.fused.usable` holds.
        si: third word of the counter.
        count: numbers per key.
    """
    out = keys.new_empty((len(keys), count), dtype=torch.float32)
    blocks = -(-count // 4)
    _philox_kernel[(-(-blocks // _BLOCK), len(keys))](keys, out, si, count, BLOCK=_BLOCK)
    return out


if triton is not None:
    import triton.language as tl

    @kernel
    def _uniform(word):
        # 23 random bits plus a half, as a signed integer that fp32 holds exactly.
        return ((word >> 9).to(tl.int32).to(tl.float32) + 0.5) * 1.1920928955078125e-07

    @kernel
    def _philox_kernel(key_ptr, out_ptr, si, count, BLOCK: tl.constexpr):
        image = tl.program_id(1).to(tl.int64)
        block = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        zero = block * 0
        words = tl.philox(tl.load(key_ptr + image), block, zero, zero + si, zero)
        base = out_ptr + image * count
        at = block * 4
        tl.store(base + at, _uniform(words[0]), mask=at < count)
        tl.store(base + at + 1, _uniform(words[1]), mask=at + 1 < count)
        tl.store(base + at + 2, _uniform(words[2]), mask=at + 2 < count)
        tl.store(base + at + 3, _uniform(words[3]), mask=at + 3 < count)
