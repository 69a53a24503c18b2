"""Training batches: drawings placed on backgrounds, made on the device that holds the drawings.

Shapes: n images of a batch, m placed drawings (one to four per image).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from infinity.schedule import Grid
from infinity.training.data.captions import (
    COLOURS,
    RELATIONS,
    Relation,
    count_caption,
    is_held_out,
    pair_caption,
    single_caption,
)
from infinity.training.data.nouns import is_countable
from infinity.training.data.pack import Record

Kind = Literal["single", "pair", "count"]

_KINDS: tuple[Kind, ...] = ("single", "pair", "count")
_KIND_WEIGHTS = (0.80, 0.08, 0.12)
_WHITE = 0.55
_NAMED = tuple(name for name in COLOURS if name != "white")
_JITTER = 8 / 255
_MAX_SHRINK = 1.1
_MAX_SHIFT = 0.06
"""3 % of the side, in the [-1, 1] coordinates of the layouts."""

_SMALL = 0.46
"""Size of each drawing of a pair or count, as a share of the shorter side."""

_BESIDE = ((-0.5, 0.0), (0.5, 0.0))
_STACKED = ((0.0, -0.5), (0.0, 0.5))
_PAIR_LAYOUTS: dict[Relation, tuple[tuple[float, float], ...]] = {
    "left": _BESIDE,
    "above": _STACKED,
    "and": _BESIDE,
}
_COUNT_LAYOUTS: dict[int, tuple[tuple[float, float], ...]] = {
    2: _BESIDE,
    3: ((0.0, -0.5), (-0.5, 0.5), (0.5, 0.5)),
    4: ((-0.5, -0.5), (0.5, -0.5), (-0.5, 0.5), (0.5, 0.5)),
}
_MULTIPLE_GROUPS = (
    "animal-", "award-medal", "cat-face", "clothing", "dishware", "drink", "face-", "food-", "game",
    "geometric", "heart", "household", "light-video", "musical-instrument", "plant-", "sky-weather",
    "sport", "tool", "transport-",
)  # fmt: skip
"""Subgroups of drawings that stay recognisable at half size, for pairs and counts."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where one drawing goes: row of the pack, image of the batch, size as a share of the shorter
    side, centre in [-1, 1] with y down."""

    row: int
    image: int
    size: float
    x: float
    y: float


class Composer:
    """Endless training batches from rendered drawings; the same seed gives the same batches.

    80 % single drawings, 8 % pairs of one style, 12 % two to four copies; 55 % on white, the rest
    on named colours with a slight jitter. Single drawings run through shuffled passes over the
    training set, so that every one is seen equally often. Held-out drawings never occur.

    Args:
        rendered: premultiplied RGBA of every record, on the device where batches are wanted.
        records: what is drawn in each row.
        seed: start of the random stream.
        canvas: height and width of the pictures; the drawings' own by default.

    Raises:
        ValueError: ``rendered`` and ``records`` differ in length.
    """

    def __init__(
        self,
        rendered: UInt8[Tensor, "r s s 4"],
        records: Sequence[Record],
        seed: int,
        canvas: Grid | None = None,
    ) -> None:
        if len(rendered) != len(records):
            raise ValueError(f"{len(rendered)} rendered drawings for {len(records)} records")
        self._rendered = rendered
        self._records = records
        self._rng = Random(seed)
        self._canvas = canvas or (rendered.shape[1], rendered.shape[2])
        self._row_of = {record.id: row for row, record in enumerate(records)}
        rows = [i for i, r in enumerate(records) if not is_held_out(r.concept, r.style)]
        multiple = [i for i in rows if records[i].group.startswith(_MULTIPLE_GROUPS)]
        self._countable = [i for i in multiple if is_countable(records[i].concept)]
        self._by_style: dict[str, list[int]] = {}
        for row in multiple:
            self._by_style.setdefault(records[row].style, []).append(row)
        self._singles = self._passes(rows)
        self._counts = self._passes(self._countable)
        self._firsts = self._passes(multiple)

    def batch(self, n: int) -> tuple[Float[Tensor, "n 3 h w"], list[str]]:
        """``n`` images in [-1, 1] on the drawings' device, and one caption each."""
        placements: list[Placement] = []
        captions: list[str] = []
        backgrounds: list[tuple[float, ...]] = []
        for image, kind in enumerate(self._rng.choices(_KINDS, _KIND_WEIGHTS, k=n)):
            name, colour = self._background()
            backgrounds.append(colour)
            if kind == "single":
                caption, placed = self._single(image, name)
            elif kind == "pair":
                caption, placed = self._pair(image, name)
            else:
                caption, placed = self._count(image, name)
            captions.append(caption)
            placements += placed
        return self._compose(placements, backgrounds), captions

    def single(self, ids: Sequence[str], background: str = "white") -> Float[Tensor, "n 3 h w"]:
        """The named drawings, centred at full size on an exact background colour, in [-1, 1].

        Raises:
            KeyError: an id or the colour is unknown.
        """
        placements = [
            Placement(row=self._row_of[name], image=i, size=1.0, x=0.0, y=0.0)
            for i, name in enumerate(ids)
        ]
        colour = tuple(channel / 255 for channel in COLOURS[background])
        return self._compose(placements, [colour] * len(ids))

    def _single(self, image: int, background: str) -> tuple[str, list[Placement]]:
        rng, row = self._rng, next(self._singles)
        placement = Placement(
            row=row,
            image=image,
            size=1 / rng.uniform(1.0, _MAX_SHRINK),
            x=rng.uniform(-_MAX_SHIFT, _MAX_SHIFT),
            y=rng.uniform(-_MAX_SHIFT, _MAX_SHIFT),
        )
        return single_caption(self._records[row], background, rng), [placement]

    def _pair(self, image: int, background: str) -> tuple[str, list[Placement]]:
        first = next(self._firsts)
        record = self._records[first]
        second = self._rng.choice(self._by_style[record.style])
        while second == first and len(self._by_style[record.style]) > 1:
            second = self._rng.choice(self._by_style[record.style])
        relation = self._rng.choice(RELATIONS)
        caption = pair_caption(record, self._records[second], relation, background, self._rng)
        return caption, self._place((first, second), image, _PAIR_LAYOUTS[relation])

    def _count(self, image: int, background: str) -> tuple[str, list[Placement]]:
        row, count = next(self._counts), self._rng.randint(2, 4)
        caption = count_caption(self._records[row], count, background, self._rng)
        return caption, self._place((row,) * count, image, _COUNT_LAYOUTS[count])

    @staticmethod
    def _place(
        rows: Sequence[int], image: int, layout: Sequence[tuple[float, float]]
    ) -> list[Placement]:
        return [
            Placement(row=row, image=image, size=_SMALL, x=x, y=y)
            for row, (x, y) in zip(rows, layout, strict=True)
        ]

    def _background(self) -> tuple[str, tuple[float, ...]]:
        if self._rng.random() < _WHITE:
            return "white", (1.0, 1.0, 1.0)
        name = self._rng.choice(_NAMED)
        jitter = (self._rng.uniform(-_JITTER, _JITTER) for _ in range(3))
        channels = zip(COLOURS[name], jitter, strict=True)
        return name, tuple(min(1.0, max(0.0, value / 255 + shift)) for value, shift in channels)

    def _passes(self, rows: Sequence[int]) -> Iterator[int]:
        order = list(rows)
        while True:
            self._rng.shuffle(order)
            yield from order

    def _compose(
        self, placements: Sequence[Placement], backgrounds: Sequence[tuple[float, ...]]
    ) -> Float[Tensor, "n 3 h w"]:
        device = self._rendered.device
        colour_N3 = torch.tensor(backgrounds, dtype=torch.float32).to(device, non_blocking=True)
        layers = colour_N3.new_zeros(len(backgrounds), 4, *self._canvas)
        for small in (False, True):
            group = [p for p in placements if (p.size <= 0.5) == small]
            if group:
                image = torch.tensor([p.image for p in group]).to(device, non_blocking=True)
                # Drawings of one image never overlap, so every pixel adds at most one nonzero term.
                layers.index_add_(0, image, self._sample(group, halve=small))
        cover = layers[:, :3] + (1 - layers[:, 3:]) * colour_N3[:, :, None, None]
        return cover.mul_(2).sub_(1).clamp_(-1, 1)

    def _sample(self, group: Sequence[Placement], halve: bool) -> Float[Tensor, "m 4 h w"]:
        """The placed drawings, each on an empty canvas; ``halve`` averages 2×2 pixels first."""
        device = self._rendered.device
        table = torch.tensor([(p.row, p.size, p.x, p.y) for p in group], dtype=torch.float64)
        size, x, y = table[:, 1:].float().to(device, non_blocking=True).unbind(1)
        rows = table[:, 0].long().to(device, non_blocking=True)
        source = self._rendered[rows].permute(0, 3, 1, 2).float().div_(255)
        if halve:
            source = F.avg_pool2d(source, 2)
        height, width = self._canvas
        across, down = (side / min(height, width) / size for side in (width, height))
        zero = torch.zeros_like(size)
        theta = torch.stack([across, zero, -x * across, zero, down, -y * down], dim=1)
        grid = F.affine_grid(
            theta.view(-1, 2, 3), [len(group), 4, height, width], align_corners=False
        )
        return F.grid_sample(source, grid, padding_mode="zeros", align_corners=False)
