"""Number of separate objects on a plain background, by connected components."""

import numpy as np
from jaxtyping import Bool, UInt8
from numpy.typing import NDArray

_CELLS = 128
_CONTRAST = 24
"""Smallest difference from the background, of 255 in any channel, that counts as drawn."""

_COVERED = 0.3
_SMALLEST_SHARE = 0.35
"""Components smaller than this share of the largest are parts or specks, not objects."""


def count_objects(image: UInt8[np.ndarray, "h w 3"]) -> int:
    """Connected components that differ from the border's median colour, on a 128×128 grid.

    Gaps of up to two cells within an object are closed first.

    Args:
        image: sRGB; both sides multiples of 128.
    """
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]]).astype(np.int16)
    background = np.median(border, axis=0)
    drawn = np.abs(image.astype(np.int16) - background).max(axis=-1) > _CONTRAST
    height, width = (side // _CELLS for side in drawn.shape)
    cells = drawn.reshape(_CELLS, height, _CELLS, width).mean(axis=(1, 3)) > _COVERED
    sizes = component_sizes(_grow(cells))
    return int((sizes > _SMALLEST_SHARE * sizes.max()).sum()) if sizes.size else 0


def component_sizes(mask: Bool[np.ndarray, "h w"]) -> NDArray[np.int64]:
    """Cells of each 4-connected component of True cells, in reading order of the first cell."""
    left = mask.copy()
    sizes: list[int] = []
    for row, column in np.argwhere(mask).tolist():
        if not left[row, column]:
            continue
        left[row, column] = False
        stack, size = [(row, column)], 0
        while stack:
            y, x = stack.pop()
            size += 1
            for ny, nx in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                inside = 0 <= ny < mask.shape[0] and 0 <= nx < mask.shape[1]
                if inside and left[ny, nx]:
                    left[ny, nx] = False
                    stack.append((ny, nx))
        sizes.append(size)
    return np.array(sizes, dtype=np.int64)


def _grow(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Every cell that is True or has a True neighbour among its eight."""
    padded = np.pad(mask, 1)
    h, w = mask.shape
    grown = np.zeros_like(mask)
    for y in range(3):
        for x in range(3):
            grown |= padded[y : y + h, x : x + w]
    return grown
