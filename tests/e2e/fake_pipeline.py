"""A pipeline without weights: an image is a pure function of prompt, seed and settings."""

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from infinity.checkpoint import digest
from infinity.config import PRESETS
from stepvar_patch.cli import main

SIDE_PX = 32


@dataclass
class FakePipeline:
    """Same surface as `infinity.pipeline.InfinityPipeline`, as far as the command line uses it."""

    digest: str = ""
    delay_s: float = 0.0
    loads: list[str] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    max_batch_size: int = 1
    config = PRESETS["embedded"]

    def load(
        self,
        path: str,
        *,
        tokenizer: str | None,
        text_encoder: str | None,
        device: str,
        dtype: str,
    ) -> "FakePipeline":
        self.loads.append(path)
        self.digest = digest(Path(path))
        return self

    def __call__(
        self,
        prompts: Sequence[str],
        *,
        negative_prompt: Sequence[str] | None,
        seed: Sequence[int],
        callback_on_scale_end: Any = None,
        **settings: Any,
    ) -> SimpleNamespace:
        self.batches.append(len(prompts))
        self.sizes.append(self.max_batch_size)
        time.sleep(self.delay_s)
        negatives = negative_prompt or [""] * len(prompts)
        keys = [
            repr((p, n, s, sorted(settings.items())))
            for p, n, s in zip(prompts, negatives, seed, strict=True)
        ]
        for key in keys if callback_on_scale_end is not None else ():
            for scale in range(3):
                latent = _noise(f"{key}{scale}")[None]
                codes = latent.float() - 128
                callback_on_scale_end(SimpleNamespace(scale=scale, latent=latent, codes=codes))
        latents = torch.stack([_noise(key) for key in keys])
        timings = {"text": 1.0, "scales": 2.0, "decode": 3.0}
        return SimpleNamespace(
            images=self.decode(latents), seeds=tuple(seed), timings=timings, latents=latents
        )

    def decode(self, latent: torch.Tensor) -> list[Image.Image]:
        return [Image.fromarray(image.numpy()) for image in latent]


def write_model_directory(folder: Path) -> None:
    """A manifest of the embedded model that lists no weights, and an empty text encoder."""
    (folder / "text_encoder").mkdir(parents=True)
    (folder / "text_encoder" / "config.json").write_text("{}")
    entry = {"bytes": 2, "sha256": hashlib.sha256(b"{}").hexdigest(), "component": "text_encoder"}
    files = {"text_encoder/config.json": entry}
    manifest = {"format_version": 1, "config": asdict(PRESETS["embedded"]), "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _noise(key: str) -> torch.Tensor:
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
    return torch.from_numpy(pixels)


if __name__ == "__main__":
    sys.exit(main(sys.argv[2:], FakePipeline(delay_s=float(sys.argv[1])).load))
