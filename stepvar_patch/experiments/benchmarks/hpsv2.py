"""HPS v2: one picture per prompt in a folder per style."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from PIL import Image

from infinity.errors import UserError
from infinity.io.prompts import PromptRow
from stepvar_patch.experiments.benchmarks.layout import open_picture, prompt_row, read_json

STYLES = ("anime", "concept-art", "paintings", "photo")
_QUALITY = 95


class HpsV2:
    """``<style>/00000.jpg``, numbered as in the style's list.

    The official scorer asks for JPEG; quality 95 without chroma subsampling is used.

    Source: Wu et al. 2023, the official package's readme.
    """

    name, images = "hpsv2", 1

    def prompts(self, path: Path) -> list[PromptRow]:
        """The lists in ``anime.json``, ``concept-art.json``, ``paintings.json``, ``photo.json``."""
        rows = []
        for style in STYLES:
            file = path / f"{style}.json"
            listed = read_json(file)
            if not isinstance(listed, list) or not listed:
                raise UserError(f"{file}: must be a list of prompts")
            rows += [
                prompt_row(f"{style}-{i:05d}", prompt, f"{file}[{i}]", style=style, number=i)
                for i, prompt in enumerate(listed)
            ]
        return rows

    def files(self, row: PromptRow) -> Sequence[PurePosixPath]:
        return [PurePosixPath(row.extra["style"]) / f"{row.extra['number']:05d}.jpg"]

    def write(self, folder: Path, row: PromptRow, pictures: Sequence[Path]) -> None:
        target = folder / self.files(row)[0]
        target.parent.mkdir(parents=True, exist_ok=True)
        open_picture(pictures[0]).save(target, quality=_QUALITY, subsampling=0)

    def read(self, folder: Path, row: PromptRow) -> list[Image.Image]:
        return [open_picture(folder / self.files(row)[0])]
