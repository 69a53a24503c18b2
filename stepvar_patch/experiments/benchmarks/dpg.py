"""DPG-Bench: one picture per prompt, made of four in a 2×2 grid."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from PIL import Image

from infinity.errors import UserError
from infinity.io.images import write_png
from infinity.io.prompts import PromptRow
from stepvar_patch.experiments.benchmarks.layout import open_picture, prompt_row

_SIDE = 2


class DpgBench:
    """``<name>.png`` for every ``<name>.txt``: four pictures in reading order, without margins.

    Source: Hu et al. 2024 (ELLA), the official program ``compute_dpg_bench.py``.
    """

    name, images = "dpg", _SIDE * _SIDE

    def prompts(self, path: Path) -> list[PromptRow]:
        """The texts of the folder ``dpg_bench/prompts`` in name order."""
        files = sorted(path.glob("*.txt")) if path.is_dir() else []
        if not files:
            raise UserError(f"{path}: is no folder of .txt prompts (dpg_bench/prompts)")
        return [prompt_row(file.stem, _text(file), str(file)) for file in files]

    def files(self, row: PromptRow) -> Sequence[PurePosixPath]:
        return [PurePosixPath(f"{row.id}.png")]

    def write(self, folder: Path, row: PromptRow, pictures: Sequence[Path]) -> None:
        images = [open_picture(path) for path in pictures]
        width, height = images[0].size
        grid = Image.new("RGB", (_SIDE * width, _SIDE * height))
        for index, image in enumerate(images):
            grid.paste(image, (index % _SIDE * width, index // _SIDE * height))
        folder.mkdir(parents=True, exist_ok=True)
        write_png(folder / self.files(row)[0], grid)

    def read(self, folder: Path, row: PromptRow) -> list[Image.Image]:
        grid = open_picture(folder / self.files(row)[0])
        width, height = (side // _SIDE for side in grid.size)
        boxes = [(x * width, y * height) for y in range(_SIDE) for x in range(_SIDE)]
        return [grid.crop((x, y, x + width, y + height)) for x, y in boxes]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
