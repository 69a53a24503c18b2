"""Maps of every scale as one PNG strip, and as one HTML page that needs no server."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from infinity.io.images import write_png
from infinity.schedule import Grid
from stepvar_patch.experiments.page import data_url, write_page

_DIMMED = 0.25
"""Brightness of a token that is not computed."""

_DIFFERENCE_GAIN = 4.0
_CELL_PX = 160
_PAGE_PX = 512
"""Longest side of a picture in the page; larger ones are made smaller."""

_GAP_PX = 4
_LABEL_PX = 16
_SIDE_PX = 80


@dataclass(frozen=True, kw_only=True)
class SeenScale:
    """One scale as the policy saw and decided it, for the first image.

    Attributes:
        grid: of the maps.
        structure, texture: StepVAR's scores of the stream that the policy looks at.
        kept: share of the decisions that kept each token: 0 or 1, or in between where layers or
            branches decide for themselves.
        run: False when the scale was left out.
    """

    grid: Grid
    structure: Float[Tensor, " n"]
    texture: Float[Tensor, " n"]
    kept: Float[Tensor, " n"]
    run: bool


@dataclass(frozen=True, kw_only=True)
class ScalePictures:
    """One column of the strip.

    Attributes:
        title: scale, grid and kept tokens.
        share: of the tokens that are computed.
        panels: caption → picture.
    """

    title: str
    share: float
    panels: dict[str, Image.Image]

    @staticmethod
    def of(
        si: int,
        seen: SeenScale,
        so_far: Float[Tensor, "3 h w"],
        now: Float[Tensor, "3 h w"],
        dense: Float[Tensor, "3 h w"],
    ) -> "ScalePictures":
        """The pictures of scale ``si``.

        Args:
            si: index of the scale.
            seen: scores and kept tokens.
            so_far: picture before the scale, in [0, 1].
            now: picture after it.
            dense: the dense run's picture after it.
        """
        h, w = seen.grid
        size = so_far.shape[2], so_far.shape[1]
        kept = int(seen.kept.sum().round())
        state = f"{kept} of {h * w} tokens" if seen.run else "not run"
        light = _DIMMED + (1 - _DIMMED) * _scaled(seen.kept, seen.grid, size)
        return ScalePictures(
            title=f"scale {si}: {h} × {w}, {state}",
            share=float(seen.kept.mean()) if seen.run else 0.0,
            panels={
                "structure": _picture(_scaled(_unit(seen.structure), seen.grid, size)),
                "texture": _picture(_scaled(_unit(seen.texture), seen.grid, size)),
                "kept": _picture(_array(so_far) * light[..., None]),
                "picture": _picture(_array(now)),
                f"difference × {_DIFFERENCE_GAIN:g}": _picture(
                    np.abs(_array(now) - _array(dense)) * _DIFFERENCE_GAIN
                ),
            },
        )


def write_strip(path: Path, scales: Sequence[ScalePictures]) -> None:
    """Writes one picture: a column per scale, a row per panel.

    Raises:
        UserError: the file cannot be written.
    """
    columns, rows = len(scales), len(scales[0].panels)
    any_panel = next(iter(scales[0].panels.values()))
    size = (_CELL_PX, max(1, round(_CELL_PX * any_panel.height / any_panel.width)))
    step_x, step_y = size[0] + _GAP_PX, size[1] + _GAP_PX
    width, height = columns * step_x + _SIDE_PX, rows * step_y + _LABEL_PX
    sheet = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for row, caption in enumerate(scales[0].panels):
        draw.text((2, _LABEL_PX + row * step_y), _ascii(caption), fill="black", font=font)
    for column, scale in enumerate(scales):
        x = _SIDE_PX + column * step_x
        draw.text((x, 2), _ascii(scale.title), fill="black", font=font)
        for row, panel in enumerate(scale.panels.values()):
            sheet.paste(panel.resize(size), (x, _LABEL_PX + row * step_y))
    write_png(path, sheet)


def write_mask_page(
    path: Path, scales: Sequence[ScalePictures], prompt: str, policy: str, seed: int
) -> None:
    """Writes one page with a slider over the scales; pictures are inside it.

    Raises:
        UserError: the file cannot be written.
    """
    shown = [
        {
            "title": scale.title,
            "share": scale.share,
            "panels": [(caption, _data(panel)) for caption, panel in scale.panels.items()],
        }
        for scale in scales
    ]
    values = {"prompt": prompt, "policy": policy, "seed": seed, "scales": shown}
    write_page(path, "masks.html", values, _SCRIPT)


def _data(panel: Image.Image) -> str:
    """Exact where it is small; larger pictures would make a page of many megabytes."""
    return data_url(panel, largest_px=_PAGE_PX, lossless=max(panel.size) <= _PAGE_PX)


def _ascii(text: str) -> str:
    """Text that Pillow's own font can show."""
    return text.replace(" × ", "x")


def _unit(scores: Tensor) -> Tensor:
    low, high = scores.min(), scores.max()
    return (scores - low) / (high - low).clamp_min(1e-12)


def _scaled(values: Tensor, grid: Grid, size: tuple[int, int]) -> Any:
    """``(h, w)`` array of a map in [0, 1], each token a rectangle of pixels."""
    cells = Image.fromarray(values.view(grid).numpy().astype(np.float32))
    return np.asarray(cells.resize(size, Image.Resampling.NEAREST))


def _array(image: Tensor) -> Any:
    return image.permute(1, 2, 0).cpu().numpy()


def _picture(values: Any) -> Image.Image:
    image = Image.fromarray((np.clip(values, 0, 1) * 255).round().astype(np.uint8))
    return image.convert("RGB")


_SCRIPT = """
const slider = document.getElementById("scale");
const sections = document.querySelectorAll("section");
const bars = document.querySelectorAll(".bars button");
function show() {
  const now = Number(slider.value);
  sections.forEach((section, index) => section.classList.toggle("shown", index === now));
  bars.forEach((bar, index) => bar.classList.toggle("now", index === now));
}
slider.addEventListener("input", show);
bars.forEach((bar, index) => bar.addEventListener("click", () => {
  slider.value = index;
  show();
}));
show();
"""
