"""Pictures of a run read back from its folder, batch by batch."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from infinity.errors import UserError

_READERS = min(16, os.cpu_count() or 1)
_BATCH = 64


def read_picture(path: Path) -> UInt8[Tensor, "h w 3"]:
    """One picture as sRGB bytes.

    Raises:
        UserError: missing, or not a picture.
    """
    try:
        with Image.open(path) as image:
            return torch.from_numpy(np.array(image.convert("RGB")))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not a readable picture ({error})") from error


def read_batches(paths: Sequence[Path]) -> Iterator[UInt8[Tensor, "b h w 3"]]:
    """The pictures in order, 64 at a time; the next ones are read while a batch is used.

    Raises:
        UserError: one is unreadable or has another size than the first.
    """
    shape: tuple[int, ...] | None = None
    with ThreadPoolExecutor(_READERS) as pool:
        ahead = [pool.map(read_picture, paths[:_BATCH])]
        for start in range(0, len(paths), _BATCH):
            ahead.append(pool.map(read_picture, paths[start + _BATCH : start + 2 * _BATCH]))
            images = list(ahead.pop(0))
            shape = shape or tuple(images[0].shape)
            for image, path in zip(images, paths[start : start + _BATCH], strict=True):
                if tuple(image.shape) != shape:
                    found = f"{image.shape[0]} × {image.shape[1]}"
                    raise UserError(
                        f"{path}: {found} pixels, the others have {shape[0]} × {shape[1]}"
                    )
            yield torch.stack(images)
