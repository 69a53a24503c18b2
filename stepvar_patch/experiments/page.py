"""HTML pages that need no server: one file each, nothing fetched, only our own script run."""

import base64
import hashlib
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from infinity.io.files import write_atomic

_ENVIRONMENT = Environment(
    loader=PackageLoader("stepvar_patch.experiments"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_page(path: Path, template: str, values: dict[str, Any], script: str = "") -> int:
    """Writes a page and tells its size in bytes.

    Every value is escaped. The page's own content policy forbids whatever else might still get in:
    a browser loads nothing from outside and runs ``script`` only.

    Args:
        path: of the page; its folder exists.
        template: name of a file in ``templates/``.
        values: what the template shows.
        script: our own JavaScript, run when the page is loaded.

    Raises:
        UserError: the file cannot be written.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = _ENVIRONMENT.get_template(template).render(**values, script=script, digest=digest)
    data = page.encode(errors="replace")
    write_atomic(path, lambda file: file.write(data))
    return len(data)


def data_url(image: Image.Image, *, largest_px: int, lossless: bool = True) -> str:
    """A picture as text for an ``img``, made smaller where a side is longer than ``largest_px``."""
    factor = min(1, largest_px / max(image.size))
    if factor < 1:
        size = [max(1, round(side * factor)) for side in image.size]
        image = image.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    kind = "png" if lossless else "webp"
    image.save(buffer, format=kind, quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
