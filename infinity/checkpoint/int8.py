"""Per-row int8 storage of matrices: half the bytes of fp16 on disk, dequantised at load."""

import torch
from torch import Tensor

SCALE_SUFFIX = "::row_scale"
"""A stored int8 tensor ``K`` has its bf16 row scales beside it under ``K + SCALE_SUFFIX``."""


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes of ``weight`` and one bf16 scale per row of its first axis; ``codes · scale ≈
    weight``.

    Symmetric absmax rounding: the error of an entry is at most half its row's scale, as codes are
    chosen for the scale that is stored.
    """
    rows = weight.detach().float().flatten(1)
    scale = (rows.abs().amax(dim=1).clamp_min(1e-12) / 127).bfloat16()
    codes = (rows / scale.float()[:, None]).round().clamp_(-127, 127).to(torch.int8)
    return codes.view(weight.shape), scale


def dequantize_rows(codes: Tensor, scale: Tensor) -> Tensor:
    """Inverse of :func:`quantize_rows`, fp32."""
    return (codes.float().flatten(1) * scale.float()[:, None]).view(codes.shape)


def compress_state(state: dict[str, Tensor], min_elements: int = 4096) -> dict[str, Tensor]:
    """``state`` with every floating matrix of at least ``min_elements`` as int8 rows, everything
    else as fp16.
    """
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        if value.is_floating_point() and value.ndim >= 2 and value.numel() >= min_elements:
            out[key], out[key + SCALE_SUFFIX] = quantize_rows(value)
        else:
            out[key] = value.half() if value.is_floating_point() else value
    return out


def expand_state(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of :func:`compress_state`: fp32 tensors under their own keys; other tensors pass
    through.
    """
    out: dict[str, Tensor] = {}
    for key, value in stored.items():
        if key.endswith(SCALE_SUFFIX):
            continue
        scale = stored.get(key + SCALE_SUFFIX)
        if scale is not None:
            out[key] = dequantize_rows(value, scale)
        else:
            out[key] = value.float() if value.is_floating_point() else value
    return out
