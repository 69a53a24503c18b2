"""What a scorer is, and the files it may need."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, Protocol

from jaxtyping import UInt8
from pydantic import ConfigDict
from torch import Tensor

from stepvar_patch.experiments.estimate import Bootstrap, Estimate
from stepvar_patch.experiments.pruning import STRICT
from stepvar_patch.experiments.schema import FilePath


@dataclass(frozen=True, kw_only=True)
class MetricFiles:
    """Local files that metrics need; a metric whose files are not there says which one it misses.

    Attributes:
        drawings: pack of the embedded model's training drawings (``stepvar train data``); the
            fitted reference ``reference.safetensors`` is kept beside it.
        text_encoder: folder of the embedded model's text encoder, to fit the reference.
        lpips_backbone: AlexNet of torchvision, ``alexnet-owt-7be5be79.pth``.
        lpips_heads: the linear heads of the lpips package, ``lpips/weights/v0.1/alex.pth``.
        inception: the FID network, ``pt_inception-2015-12-05-6726825d.pth``.
        real_images: folder of real pictures, for FID, KID and CLIP-FID; sub-folders count.
        clip: folder of a CLIP model and its tokenizer in the transformers layout.
        hps: the HPS checkpoint, ``HPS_v2.1_compressed.pt``.
        image_reward: the ImageReward checkpoint, ``ImageReward.pt``.
        bert: folder of a ``bert-base-uncased`` tokenizer, for ImageReward.
        detector: folder of a Mask2Former trained on COCO instances, transformers layout, for
            GenEval.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    drawings: FilePath = ".data/embedded/drawings.zip"
    text_encoder: FilePath = "weights/text_encoder"
    lpips_backbone: FilePath = "models/metrics/alexnet-owt-7be5be79.pth"
    lpips_heads: FilePath = "models/metrics/lpips-alex.pth"
    inception: FilePath = "models/metrics/pt_inception-2015-12-05-6726825d.pth"
    real_images: FilePath = "data/real"
    clip: FilePath = "models/metrics/clip-vit-large-patch14"
    hps: FilePath = "models/metrics/HPS_v2.1_compressed.pt"
    image_reward: FilePath = "models/metrics/ImageReward.pt"
    bert: FilePath = "models/metrics/bert-base-uncased"
    detector: FilePath = "models/metrics/mask2former-swin-small-coco-instance"

    def missing(self, *names: str) -> str:
        """Which of the named files are not there and where they were looked for; empty if none."""
        absent = [name for name in names if not os.path.exists(getattr(self, name))]
        return ", ".join(f"files.{name} ({getattr(self, name)})" for name in absent)

    def stamp(self) -> dict[str, list[float]]:
        """Path → size and time of change of every file that is there, to notice a new one."""
        found = {}
        for field in fields(self):
            path = Path(getattr(self, field.name))
            if path.exists():
                state = path.stat()
                found[str(path)] = [state.st_size if path.is_file() else 0, state.st_mtime]
        return found


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Pictures to score.

    Attributes:
        images: sRGB, on the scorer's device.
        reference: the dense pictures of the same prompts and seeds; None where there are none.
        prompts: of the pictures.
    """

    images: UInt8[Tensor, "b h w 3"]
    reference: UInt8[Tensor, "b h w 3"] | None
    prompts: Sequence[str]


class Scorer(Protocol):
    """Takes all pictures of one run, then gives its metrics."""

    def add(self, batch: Batch) -> None: ...

    def results(self, bootstrap: Bootstrap) -> dict[str, Estimate]: ...
