"""The codes of drawn pictures, kept as two bit planes per scale for comparisons bit by bit."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int8
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from infinity.errors import UserError
from infinity.io.files import make_folder, write_atomic
from stepvar_patch.experiments.metrics.bit_agreement import bit_agreement

CODES = "codes"
"""Folder inside a run's folder."""


class CodeRecorder:
    """The signs of all codes of one call, which the pipeline may split into batches."""

    def __init__(self) -> None:
        self._batches: list[dict[int, Int8[Tensor, "b d h w"]]] = []
        self._scale: int | None = None

    def add(self, end: Any) -> None:
        """Takes the codes of a scale; they stay on their device until they are asked for."""
        if self._scale is None or end.scale <= self._scale:
            self._batches.append({})
        self._scale = end.scale
        self._batches[-1][end.scale] = end.codes.sign().to(torch.int8)

    def image(self, index: int) -> dict[int, Int8[Tensor, "d h w"]]:
        """Signs (1, -1, or 0 where nothing was drawn) of the call's ``index``-th image by scale."""
        for number, batch in enumerate(self._batches):
            size = len(next(iter(batch.values())))
            if index < size:
                if next(iter(batch.values())).is_cuda:
                    batch = {scale: signs.cpu() for scale, signs in batch.items()}
                    self._batches[number] = batch
                return {scale: signs[index] for scale, signs in batch.items()}
            index -= size
        raise IndexError(index)


def write_codes(run: Path, name: str, codes: Mapping[int, Int8[Tensor, "d h w"]]) -> None:
    """Writes ``codes/<name>.safetensors`` in a run's folder.

    Args:
        run: its folder.
        name: of the picture, without suffix.
        codes: signs by scale.

    Raises:
        UserError: the disk is full or the place is not writable.
    """
    tensors, shapes = {}, {}
    for scale, signs in codes.items():
        values = signs.numpy()
        planes = np.stack([values > 0, values < 0]).reshape(2, -1)
        tensors[str(scale)] = np.packbits(planes, axis=1)
        shapes[str(scale)] = "x".join(map(str, values.shape))
    path = run / CODES / f"{name}.safetensors"
    make_folder(path.parent)
    write_atomic(path, lambda file: file.write(save(tensors, metadata=shapes)))


def read_codes(run: Path, name: str) -> dict[int, Int8[Tensor, "d h w"]] | None:
    """What `write_codes` wrote, or None where there is no such file.

    Raises:
        UserError: the file is damaged.
    """
    path = run / CODES / f"{name}.safetensors"
    if not path.is_file():
        return None
    codes = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for key, text in (file.metadata() or {}).items():
                shape = tuple(int(side) for side in text.split("x"))
                planes = np.unpackbits(file.get_tensor(key), axis=1, count=int(np.prod(shape)))
                signs = planes[0].astype(np.int8) - planes[1].astype(np.int8)
                codes[int(key)] = torch.from_numpy(signs.reshape(shape))
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path}: not the codes of a picture ({error})") from error
    return codes


def agreement(
    codes: Mapping[int, Int8[Tensor, "d h w"]], reference: Mapping[int, Int8[Tensor, "d h w"]]
) -> tuple[float | None, ...]:
    """Share of equal bits per scale of the reference; None where the other drew nothing."""
    return tuple(
        bit_agreement(codes[scale], signs) if scale in codes else None
        for scale, signs in sorted(reference.items())
    )
