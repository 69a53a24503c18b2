"""Contact sheets: rows of images as one PNG."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

COLUMNS = 8


def save_sheet(rows: Sequence[Float[Tensor, "n 3 H W"]], path: Path) -> None:
    """Writes ``rows`` (equally many images in [-1, 1] each) below each other."""
    strips = [torch.cat(list(row.float().cpu()), dim=-1) for row in rows]
    sheet = torch.cat(strips, dim=-2).clamp(-1, 1)
    pixels = ((sheet + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, quality=90)


def save_grid(images: Sequence[Float[Tensor, "3 H W"]], path: Path) -> None:
    """Writes images in [-1, 1] in rows of at most :data:`COLUMNS`, white where none is left."""
    columns = min(COLUMNS, len(images))
    blank = [torch.ones_like(images[0])] * (-len(images) % columns)
    padded = [*images, *blank]
    save_sheet([torch.stack(padded[i : i + columns]) for i in range(0, len(padded), columns)], path)
