"""How well a tokenizer under training gives back images that it was never shown."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from infinity.training.reconstruction_loss import psnr_db
from infinity.training.sheet import save_sheet
from infinity.training.tokenizer_objective import TokenizerObjective

BATCH = 32
SHEET_IMAGES = 12


@torch.no_grad()
def evaluate_round_trip(
    objective: TokenizerObjective, images: Float[Tensor, "n 3 H W"], sheet: Path | None
) -> dict[str, Any]:
    """PSNR in dB from all scales and from three prefixes of them, share of ones per scale, gains.

    Args:
        objective: holds the weights to evaluate; left in training mode.
        images: in [-1, 1].
        sheet: where to write a sheet of the first images above their round trips; None for none.
    """
    objective.eval()
    scales = len(objective.grids)
    prefixes = sorted({max(1, scales - 1), max(1, scales - 3), max(1, scales // 2)}, reverse=True)
    scores = []
    for count in (scales, *prefixes):
        parts = [psnr_db(objective.round_trip(p, count)[0], p) for p in images.split(BATCH)]
        scores.append(torch.cat(parts).cpu())
    bit_means = objective.round_trip(images[:BATCH])[1]
    if sheet is not None:
        shown = images[:SHEET_IMAGES]
        rows = [objective.round_trip(shown, count)[0] for count in (scales, *prefixes)]
        save_sheet([shown, *rows], sheet)
    objective.train()
    full = scores[0]
    return {
        "images": len(full),
        "psnr_db": float(full.mean()),
        "psnr_db_median": float(full.median()),
        "psnr_db_p10": float(full.quantile(0.1)),
        "prefix_scales": [float(count) for count in prefixes],
        "prefix_psnr_db": [float(score.mean()) for score in scores[1:]],
        "bit_means": bit_means.tolist(),
        "gains": objective.gains.tolist() if objective.arm.gains else [],
    }
