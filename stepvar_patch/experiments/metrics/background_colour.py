"""Name of an image's background colour, read from its corners."""

from collections.abc import Mapping

import torch
from jaxtyping import UInt8
from torch import Tensor

_CORNER_PX = 4


def background_colours(
    images: UInt8[Tensor, "n h w 3"], colours: Mapping[str, tuple[int, int, int]]
) -> list[str]:
    """The nearest of ``colours`` to the median of each image's four corner patches.

    Args:
        images: sRGB.
        colours: sRGB by name.
    """
    c = _CORNER_PX
    corners = torch.cat(
        [images[:, :c, :c], images[:, :c, -c:], images[:, -c:, :c], images[:, -c:, -c:]], dim=1
    )
    median = corners.flatten(1, 2).float().median(dim=1).values
    table = torch.tensor(list(colours.values()), device=images.device, dtype=torch.float32)
    names = list(colours)
    return [names[i] for i in torch.cdist(median, table).argmin(dim=1).tolist()]
