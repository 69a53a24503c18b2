"""Where training batches come from: an endless, seekable stream of composed images and captions."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from infinity.errors import UserError
from infinity.schedule import Grid
from infinity.training.config import DataConfig

SEGMENT_BATCHES = 1000


@runtime_checkable
class ImageSource(Protocol):
    """Endless batches of images in [-1, 1] with a caption each; a seed fixes all of them."""

    def batch(self, n: int) -> tuple[Float[Tensor, "n 3 H W"], list[str]]: ...


@dataclass(frozen=True)
class TrainingData:
    """A way to open a source by seed, and images that no source shows.

    Attributes:
        open: seed, and the pictures' height and width (None: as ``held_out``) → source.
        held_out: ``(n, 3, H, W)`` in [-1, 1], on the training device.
    """

    open: Callable[[int, Grid | None], ImageSource]
    held_out: Float[Tensor, "n 3 H W"]


class BatchStream:
    """Batch ``i`` of a run, the same whether or not the run was interrupted before it.

    The source is reopened with a new seed every :data:`SEGMENT_BATCHES` batches, so that seeking
    skips less than one segment.

    Args:
        data: where to open sources.
        seed: of the run; processes of a distributed run need different ones.
        batch_size: images per batch.
        position: index of the first batch wanted.
    """

    def __init__(self, data: TrainingData, seed: int, batch_size: int, position: int = 0) -> None:
        self._data, self._seed, self._batch_size = data, seed, batch_size
        self._position = position - position % SEGMENT_BATCHES
        self._source = self._open()
        while self._position < position:
            next(self)

    def _open(self) -> ImageSource:
        return self._data.open(self._seed + self._position // SEGMENT_BATCHES, None)

    def __iter__(self) -> "BatchStream":
        return self

    def __next__(self) -> tuple[Float[Tensor, "n 3 H W"], list[str]]:
        if self._position and self._position % SEGMENT_BATCHES == 0:
            self._source = self._open()
        self._position += 1
        return self._source.batch(self._batch_size)


def load_training_data(config: DataConfig, device: torch.device) -> TrainingData:
    """The embedded model's drawings, rendered and held on ``device``.

    Raises:
        UserError: the pack is missing or broken, or holds too few held-out drawings.
    """
    from infinity.training.data.captions import is_held_out
    from infinity.training.data.compose import Composer
    from infinity.training.data.pack import load_pack
    from infinity.training.data.render import render_pack

    pack = load_pack(Path(config.pack))
    rendered = torch.from_numpy(render_pack(pack, Path(config.rendered_dir)).copy()).to(device)
    kept_back = [r for r in pack.records if is_held_out(r.concept, r.style)]
    kept_back = kept_back[: config.held_out_images]
    if not kept_back:
        raise UserError(f"{config.pack}: no held-out drawing in this pack.")
    composer = Composer(rendered, pack.records, 0)
    return TrainingData(
        open=lambda seed, canvas: Composer(rendered, pack.records, seed, canvas),
        held_out=composer.single([r.id for r in kept_back]),
    )
