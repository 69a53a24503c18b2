"""2-D rotary position embedding on coordinates shared by all scales (spec: infinity-transformer
§6).
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from infinity.schedule import Grid, ScaleSchedule


def _frequencies(pair_channels: int) -> Float[Tensor, " freqs"]:
    return 1.0 / (10000 ** (torch.arange(0, pair_channels, 2).float() / pair_channels))


def _angles_to_cos_sin(
    rows: Float[Tensor, " h"], columns: Float[Tensor, " w"], pair_channels: int
) -> Float[Tensor, "2 h w pairs"]:
    freqs = _frequencies(pair_channels)
    h, w = len(rows), len(columns)
    row_angles = torch.outer(rows, freqs)[:, None].expand(h, w, -1)
    column_angles = torch.outer(columns, freqs)[None].expand(h, w, -1)
    angles = torch.cat([row_angles, column_angles], dim=-1)
    return torch.stack([angles.cos(), angles.sin()])


def rope_grid(
    grid: Grid, reference: Grid, head_dim: int, mode: Literal[0, 1, 2] = 2
) -> Float[Tensor, "2 tokens pairs"]:
    """Cosines and sines for the tokens of one scale, row-major.

    Args:
        grid: ``(h, w)`` of the scale, in tokens.
        reference: grid on which coordinates are counted.
        head_dim: channels of a head; the result has ``head_dim / 2`` pairs, the first half by row,
            the rest by column.
        mode: 2 rounds scaled coordinates to the reference grid (every released model); 0 counts
            cells; 1 interpolates the cosine and sine maps of a 128-long reference side.

    Source: spec infinity-transformer §6; rounding is half to even in fp32.
    """
    (h, w), (ref_h, ref_w) = grid, reference
    half = head_dim // 2
    if mode == 1:
        if ref_h >= ref_w:
            long_h, long_w = 128, int(128 / ref_h * ref_w)
        else:
            long_h, long_w = int(128 / ref_w * ref_h), 128
        maps = _angles_to_cos_sin(torch.arange(long_h).float(), torch.arange(long_w).float(), half)
        resized = F.interpolate(
            maps.permute(0, 3, 1, 2), size=grid, mode="bilinear", align_corners=True
        )
        return resized.permute(0, 2, 3, 1).reshape(2, h * w, half)
    rows, columns = torch.arange(h).float(), torch.arange(w).float()
    if mode == 2:
        rows = torch.round(rows * torch.tensor(ref_h / h, dtype=torch.float32))
        columns = torch.round(columns * torch.tensor(ref_w / w, dtype=torch.float32))
    return _angles_to_cos_sin(rows, columns, half).reshape(2, h * w, half)


def rope_table(schedule: ScaleSchedule, head_dim: int) -> Float[Tensor, "2 tokens pairs"]:
    """Cosines and sines of all scales concatenated; scale ``si`` starts at row
    ``schedule.offsets[si]``.
    """
    return torch.cat(
        [rope_grid(grid, schedule.rope_reference, head_dim) for grid in schedule.grids], dim=1
    )


def apply_rope(
    x: Float[Tensor, "*tokens heads dim"],
    cos: Float[Tensor, "*tokens pairs"],
    sin: Float[Tensor, "*tokens pairs"],
) -> Float[Tensor, "*tokens heads dim"]:
    """``x`` with channels ``(2j, 2j+1)`` of every head turned by angle ``j`` of its token; fp32."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    return torch.stack([cos * even - sin * odd, sin * even + cos * odd], dim=-1).flatten(-2)
