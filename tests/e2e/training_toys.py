"""A toy image source: coloured squares on a grey ground, named by their colour.

Importing this keeps accelerate on the CPU, where repeated runs are equal to the last bit.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from infinity.schedule import Grid
from infinity.text.base import TextFeatures
from infinity.training.source import TrainingData

os.environ.setdefault("ACCELERATE_USE_CPU", "true")

COLOURS = {"red": (1.0, -1.0, -1.0), "green": (-1.0, 1.0, -1.0), "blue": (-1.0, -1.0, 1.0)}


class Squares:
    def __init__(self, canvas: Grid, seed: int, device: str = "cpu") -> None:
        self._canvas, self._rng, self._device = canvas, Random(seed), device

    def batch(self, n: int) -> tuple[Tensor, list[str]]:
        names = self._rng.choices(list(COLOURS), k=n)
        height, width = self._canvas
        images = torch.zeros(n, 3, height, width)
        half = min(height, width) // 2
        for image, name in zip(images, names, strict=True):
            top, left = self._rng.randrange(height - half), self._rng.randrange(width - half)
            colour = torch.tensor(COLOURS[name])
            image[:, top : top + half, left : left + half] = colour[:, None, None]
        return images.to(self._device), [f"a {name} square" for name in names]


def squares(side_px: int, device: str = "cpu") -> TrainingData:
    square = (side_px, side_px)
    images, _ = Squares(square, 10**6, device).batch(8)
    return TrainingData(lambda seed, canvas: Squares(canvas or square, seed, device), images)


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


class WordEncoder:
    """Text features that are a fixed random vector per word, plus one for the end."""

    width = 128
    max_tokens = 8

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        self._words = ["a", *COLOURS, "square", "<end>"]
        self._table = torch.randn(len(self._words), self.width, generator=generator)

    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        words = [[*prompt.split(), "<end>"] for prompt in prompts]
        return TextFeatures.stack(
            [self._table[[self._words.index(w) for w in caption]] for caption in words]
        )

    encode_batch = encode
