"""Learned perceptual distance on AlexNet features, from local weights."""

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stepvar_patch.experiments.metrics.weights import load_strictly, read_tensors

_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_WIDTHS = (64, 192, 384, 256, 256)


class Lpips(nn.Module):
    """Distance of two pictures: squared differences of unit-length features, weighted and summed.

    Source: Zhang et al. 2018, eq. 1; weights of version 0.1 (``alex``).
    """

    def __init__(self) -> None:
        super().__init__()
        relu, pool = nn.ReLU, nn.MaxPool2d
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 64, 11, stride=4, padding=2), relu(), pool(3, 2)),
            *(nn.Conv2d(64, 192, 5, padding=2), relu(), pool(3, 2)),
            *(nn.Conv2d(192, 384, 3, padding=1), relu()),
            *(nn.Conv2d(384, 256, 3, padding=1), relu()),
            *(nn.Conv2d(256, 256, 3, padding=1), relu()),
        )
        self.heads = nn.ModuleList(nn.Conv2d(width, 1, 1, bias=False) for width in _WIDTHS)

    @classmethod
    def load(cls, backbone: str | Path, heads: str | Path) -> "Lpips":
        """The network from torchvision's AlexNet file and the lpips package's file of heads.

        Raises:
            UserError: a file is unreadable, unsafe or of another network.
        """
        network = cls().eval().requires_grad_(False)
        trunk = {k: v for k, v in read_tensors(backbone).items() if k.startswith("features.")}
        load_strictly(
            network.features, {k[len("features.") :]: v for k, v in trunk.items()}, backbone
        )
        linear = {
            f"{key.split('.')[0].removeprefix('lin')}.weight": value
            for key, value in read_tensors(heads).items()
        }
        load_strictly(network.heads, linear, heads)
        return network

    def forward(
        self, images: Float[Tensor, "b 3 h w"], reference: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, " b"]:
        """One distance per pair, 0 for equal pictures.

        Args:
            images: values in [-1, 1], at least 64 × 64 pixels.
            reference: likewise.
        """
        shift = images.new_tensor(_SHIFT).view(1, 3, 1, 1)
        scale = images.new_tensor(_SCALE).view(1, 3, 1, 1)
        x = (torch.cat([images, reference]) - shift) / scale
        total = images.new_zeros(len(images))
        heads = iter(self.heads)
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                a, b = F.normalize(x, dim=1, eps=1e-10).chunk(2)
                total = total + next(heads)((a - b).square()).mean(dim=(1, 2, 3))
        return total
