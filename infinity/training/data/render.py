"""The pack's drawings as one array of pixels, rendered once per machine and kept on disk."""

import io
import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from infinity.errors import UserError
from infinity.training.data.pack import Pack

logger = logging.getLogger(__name__)

SIDE_PX = 256
_FILL = 0.94
_RENDER_PX = 320
_MAX_RENDER_PX = 1280
_VISIBLE_ALPHA = 8


def render_pack(pack: Pack, folder: Path, workers: int | None = None) -> NDArray[np.uint8]:
    """Premultiplied RGBA of every drawing of the pack, memory-mapped from a cache in ``folder``.

    The cache is keyed by the pack's hash; a first call renders with one process per core.

    Args:
        pack: what to render.
        folder: where the array is kept, 256 KiB per drawing.
        workers: processes to render with; all cores by default.

    Returns:
        ``(len(pack.records), 256, 256, 4)`` uint8, read-only; a drawing's longer side spans 94 %.

    Raises:
        UserError: resvg-py is not installed, or a drawing cannot be rendered.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"rendered-{pack.sha256[:16]}.npy"
    if not path.exists():
        _resvg()
        count = len(pack.drawings)
        partial = path.with_name(f"{path.stem}-{os.getpid()}.partial")
        shape = (count, SIDE_PX, SIDE_PX, 4)
        out = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
        started = time.monotonic()
        for row, image in enumerate(_render_all(pack.drawings, workers or os.cpu_count() or 1)):
            out[row] = image
            if (row + 1) % 1000 == 0 or row + 1 == count:
                seconds = time.monotonic() - started
                logger.info("Rendered %d of %d drawings in %.0f s", row + 1, count, seconds)
        out.flush()
        partial.replace(path)
    images: NDArray[np.uint8] = np.load(path, mmap_mode="r")
    return images


def render_drawing(drawing: str | bytes) -> NDArray[np.uint8]:
    """``(256, 256, 4)`` premultiplied RGBA of one SVG text or WebP file, cropped to its drawing.

    Raises:
        UserError: resvg-py is not installed, the drawing cannot be read, or nothing of it is
            visible.
    """
    image = _rasterise(drawing, _RENDER_PX)
    box = _visible_box(image)
    target_px = round(_FILL * SIDE_PX)
    long_px = max(box[2] - box[0], box[3] - box[1])
    if isinstance(drawing, str) and long_px < target_px:
        larger = min(_MAX_RENDER_PX, round(_RENDER_PX * target_px / long_px))
        image = _rasterise(drawing, larger)
        box = _visible_box(image)
        long_px = max(box[2] - box[0], box[3] - box[1])
    width = max(1, round((box[2] - box[0]) * target_px / long_px))
    height = max(1, round((box[3] - box[1]) * target_px / long_px))
    small = image.crop(box).resize((width, height), Image.Resampling.LANCZOS)
    out = np.zeros((SIDE_PX, SIDE_PX, 4), dtype=np.uint8)
    top, left = (SIDE_PX - height) // 2, (SIDE_PX - width) // 2
    pixels = np.frombuffer(small.tobytes(), dtype=np.uint8).reshape(height, width, 4)
    colour = np.minimum(pixels[..., :3], pixels[..., 3:])
    out[top : top + height, left : left + width] = np.concatenate(
        [colour, pixels[..., 3:]], axis=-1
    )
    return out


def _render_all(drawings: Iterable[str | bytes], workers: int) -> Iterable[NDArray[np.uint8]]:
    # Fork: the children only draw, and a caller's script needs no import guard for it.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(max_workers=workers, mp_context=context) as pool:
        yield from pool.map(render_drawing, drawings, chunksize=16)


def _rasterise(drawing: str | bytes, side_px: int) -> Image.Image:
    """Image in Pillow's premultiplied mode ``RGBa``."""
    if isinstance(drawing, str):
        svg_to_bytes = _resvg()
        try:
            drawing = svg_to_bytes(
                svg_string=drawing, width=side_px, height=side_px, skip_system_fonts=True
            )
        except ValueError as error:
            raise UserError(f"resvg cannot render the SVG {drawing[:80]!r}: {error}.") from error
    try:
        return Image.open(io.BytesIO(drawing)).convert("RGBA").convert("RGBa")
    except OSError as error:
        raise UserError(f"A drawing of the pack is not a readable image: {error}.") from error


def _visible_box(image: Image.Image) -> tuple[int, int, int, int]:
    alpha = np.frombuffer(image.tobytes(), dtype=np.uint8).reshape(image.height, image.width, 4)[
        ..., 3
    ]
    rows = np.flatnonzero((alpha > _VISIBLE_ALPHA).any(axis=1))
    columns = np.flatnonzero((alpha > _VISIBLE_ALPHA).any(axis=0))
    if rows.size == 0:
        raise UserError("A drawing of the pack is empty: no pixel of it is visible.")
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _resvg() -> Callable[..., bytes]:
    """Resvg's renderer.

    Raises:
        UserError: it is not installed.
    """
    try:
        from resvg_py import svg_to_bytes
    except ImportError as error:
        raise UserError(
            "Rendering the training data needs resvg-py, which is not installed; "
            "install the extra with: pip install 'stepvar[train]'."
        ) from error
    renderer: Callable[..., bytes] = svg_to_bytes
    return renderer
