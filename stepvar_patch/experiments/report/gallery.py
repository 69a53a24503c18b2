"""Pictures of several runs side by side, small enough for one page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from infinity.errors import UserError
from infinity.io.images import open_image, read_png
from stepvar_patch.experiments.page import data_url
from stepvar_patch.experiments.report.model import Shot, Source

MOST_PROMPTS = 12
MOST_BYTES = 7 * 2**20
"""Of all pictures together; the rest of a page is small."""

_PROMPT_CHARACTERS = 500
_PICTURE_PX = 320
_MASKS_PX = 1760
_MOST_MASK_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One picture in the page: its caption, its data, and its mask strip's data or nothing."""

    caption: str
    picture: str
    masks: str


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Prompt and panels per row, and how many prompts found no room."""

    rows: Sequence[tuple[str, Sequence[Panel]]]
    left_out: int


def gallery(sources: Sequence[Source]) -> Gallery:
    """The first prompts, those that most runs drew before others.

    Args:
        sources: of all kinds; those with pictures count.

    Raises:
        UserError: a picture cannot be read.
    """
    shots: dict[tuple[str, str, int], list[Shot]] = {}
    for source in sources:
        for shot in source.shots:
            shots.setdefault(shot.key, []).append(shot)
    order = sorted(shots.items(), key=lambda item: -len(item[1]))
    rows: list[tuple[str, Sequence[Panel]]] = []
    room = MOST_BYTES
    for (prompt, _, seed), members in order[:MOST_PROMPTS]:
        panels = list(map(_panel, members))
        room -= sum(len(panel.picture) + len(panel.masks) for panel in panels)
        if room < 0:
            break
        shown = prompt if len(prompt) <= _PROMPT_CHARACTERS else f"{prompt[:_PROMPT_CHARACTERS]}…"
        rows.append((f"{shown} (seed {seed})", panels))
    return Gallery(rows=rows, left_out=len(shots) - len(rows))


def _panel(shot: Shot) -> Panel:
    picture = read_png(shot.picture)[0]
    return Panel(
        caption=shot.run,
        picture=data_url(picture, largest_px=_PICTURE_PX, lossless=False),
        masks=_masks(shot.masks) if shot.masks else "",
    )


def _masks(path: Path) -> str:
    try:
        if path.stat().st_size > _MOST_MASK_BYTES:
            raise UserError(f"{path} is larger than {_MOST_MASK_BYTES >> 20} MiB")
        with open_image(path, ["PNG"]) as image:
            return data_url(image.convert("RGB"), largest_px=_MASKS_PX, lossless=False)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as a PNG ({error})") from error
