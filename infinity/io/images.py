"""Images out: PNGs that carry what is needed to make them again, previews and contact sheets."""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from infinity.errors import UserError
from infinity.io.files import write_atomic
from infinity.io.strict_json import parse_json

CHUNK = "stepvar"
"""Keyword of the PNG text chunk that holds the provenance as JSON."""

NOTE = "stepvar-note"
"""Keyword of the text chunk of PNGs that show other pictures: which ones."""

MAX_FILE_BYTES = 256 * 2**20
_MARGIN_PX = 4
_CAPTION_PX = 16


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Everything that an image depends on, as stored inside it.

    Attributes:
        id: of the prompt row.
        prompt: the text.
        negative_prompt: the text, or ``None``.
        seed: of this image.
        settings: sampling settings, device type and dtype.
        model: ``name``, ``digest`` of the weights, and the ``path`` they were read from; ``source``
            is the digest of the official files that a model directory was converted from.
        versions: of the programs that made it.
        extra: further fields of the prompt row.
    """

    id: str
    prompt: str
    negative_prompt: str | None
    seed: int
    settings: dict[str, Any]
    model: dict[str, str]
    versions: dict[str, str]
    extra: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> "Provenance":
        """Provenance from parsed JSON.

        Args:
            value: what `to_json` gave.

        Returns:
            The provenance.

        Raises:
            ValueError: a field is missing or of the wrong kind.
        """
        if not isinstance(value, dict):
            raise ValueError("not an object")
        kinds: dict[str, type | tuple[type, ...]] = {
            "id": str,
            "prompt": str,
            "negative_prompt": (str, type(None)),
            "seed": int,
            "settings": dict,
            "model": dict,
            "versions": dict,
            "extra": dict,
        }
        for name, kind in kinds.items():
            if name not in value or not isinstance(value[name], kind):
                raise ValueError(f"field {name!r} is missing or of the wrong kind")
        for name in ("name", "digest", "path"):
            if not isinstance(value["model"].get(name), str):
                raise ValueError(f"field 'model.{name}' is missing or not a text")
        return cls(**{f.name: value[f.name] for f in fields(cls)})


def write_png(
    path: Path,
    image: Image.Image,
    provenance: Provenance | None = None,
    *,
    compress_level: int = 6,
    note: str = "",
) -> None:
    """Writes a PNG that is whole or absent.

    Args:
        path: the file.
        image: the pixels.
        provenance: stored in the text chunk ``stepvar``.
        compress_level: of zlib, 0 to 9; 1 takes a quarter of the time of 6 and a fifth more room.
        note: of an image without provenance, which pictures it shows.

    Raises:
        UserError: the disk is full or the place is not writable.
    """
    info = PngInfo()
    if provenance is not None:
        text = json.dumps(provenance.to_json(), ensure_ascii=False, allow_nan=False)
        info.add_itxt(CHUNK, text)
    elif note:
        info.add_itxt(NOTE, note)
    write_atomic(
        path, lambda file: image.save(file, "PNG", pnginfo=info, compress_level=compress_level)
    )


def open_image(path: Path, formats: list[str] | None = None) -> Image.Image:
    """An image file whose pixels are not read yet, refused if Pillow holds it for a bomb.

    Pillow itself lets pass up to twice as many pixels, with a warning on stderr.

    Raises:
        PIL.Image.DecompressionBombError: too many pixels.
        OSError: unreadable, or no image of these formats.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            return Image.open(path, formats=formats)
        except Image.DecompressionBombWarning as error:
            raise Image.DecompressionBombError(str(error)) from error


def read_png(path: Path) -> tuple[Image.Image, Provenance]:
    """The pixels and the provenance of an image that `write_png` wrote.

    Args:
        path: the file; it is not trusted.

    Returns:
        The loaded image and its provenance.

    Raises:
        UserError: missing, unreadable, oversized or damaged, not a PNG, or without provenance.
    """
    try:
        if not path.is_file():
            raise UserError(f"{path} does not exist or is not a file")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB")
        with open_image(path, ["PNG"]) as image:
            text = image.info.get(CHUNK)
            if isinstance(note := image.info.get(NOTE), str) and not isinstance(text, str):
                shown = " ".join(note[:300].split())
                raise UserError(f"{path} shows {shown} and is no picture of its own")
            if not isinstance(text, str):
                raise UserError(f"{path} has no stepvar provenance; it was not made by stepvar")
            provenance = Provenance.from_json(parse_json(text))
            image.load()
            return image.copy(), provenance
    except UnidentifiedImageError as error:
        raise UserError(f"{path} is not a PNG image") from error
    except (OSError, SyntaxError, RecursionError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as a PNG ({error})") from error
    except ValueError as error:
        raise UserError(f"{path} holds damaged stepvar provenance ({error})") from error


def strip(images: Sequence[Image.Image], height_px: int = 256) -> Image.Image:
    """The images side by side in one row, each ``height_px`` high.

    Args:
        images: at least one, all of one size.
        height_px: height of the strip without its margins.

    Returns:
        One RGB image.
    """
    width_px = max(1, round(height_px * images[0].width / images[0].height))
    size = (width_px, height_px)
    cells = [(image.resize(size, Image.Resampling.LANCZOS), "") for image in images]
    return _grid(cells, len(images), size, 0)


def contact_sheet(
    images: Mapping[str, Path], *, columns: int = 8, thumbnail_px: int = 192
) -> Image.Image:
    """Thumbnails of image files in a grid, each above its caption.

    Args:
        images: caption → PNG file, at least one, in reading order.
        columns: most thumbnails in one row.
        thumbnail_px: side of the square that a thumbnail fits into.

    Returns:
        One RGB image.
    """
    cells = []
    for caption, path in images.items():
        with Image.open(path) as image:
            thumbnail = image.convert("RGB")
        thumbnail.thumbnail((thumbnail_px, thumbnail_px), Image.Resampling.LANCZOS)
        cells.append((thumbnail, caption))
    cell_px = (max(cell.width for cell, _ in cells), max(cell.height for cell, _ in cells))
    return _grid(cells, min(columns, len(cells)), cell_px, _CAPTION_PX)


def _grid(
    cells: Sequence[tuple[Image.Image, str]],
    columns: int,
    cell_px: tuple[int, int],
    caption_px: int,
) -> Image.Image:
    """Cells on white in reading order; an image smaller than its cell sits at the upper left."""
    step_x, step_y = cell_px[0] + _MARGIN_PX, cell_px[1] + caption_px + _MARGIN_PX
    rows = -(-len(cells) // columns)
    size = (columns * step_x + _MARGIN_PX, rows * step_y + _MARGIN_PX)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for index, (image, caption) in enumerate(cells):
        x = _MARGIN_PX + index % columns * step_x
        y = _MARGIN_PX + index // columns * step_y
        sheet.paste(image, (x, y))
        if caption_px:
            draw.text((x, y + cell_px[1] + 2), caption[: cell_px[0] // 6], fill="black", font=font)
    return sheet
