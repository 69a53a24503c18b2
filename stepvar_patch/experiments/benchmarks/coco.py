"""COCO captions: one picture per photograph, for FID against the photographs."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from PIL import Image

from infinity.errors import UserError
from infinity.io.prompts import PromptRow
from stepvar_patch.experiments.benchmarks.layout import copy, open_picture, prompt_row, read_json


class CocoCaptions:
    """``<image id, 12 digits>.png``, drawn from the photograph's first caption.

    Source: Chen et al. 2015, the format of ``captions_val2014.json``.
    """

    name, images = "coco", 1

    def prompts(self, path: Path) -> list[PromptRow]:
        """One caption per image, that with the lowest id, in the order of the images."""
        content = read_json(path)
        listed = content.get("annotations") if isinstance(content, dict) else None
        if not isinstance(listed, list) or not listed:
            raise UserError(f"{path}: has no list 'annotations'")
        first: dict[int, tuple[int, str]] = {}
        for index, entry in enumerate(listed):
            where = f"{path}: annotations[{index}]"
            if not isinstance(entry, dict):
                raise UserError(f"{where} must be an object")
            image, number = entry.get("image_id"), entry.get("id")
            if type(image) is not int or type(number) is not int or min(image, number) < 0:
                raise UserError(f"{where} must have whole numbers image_id and id")
            known = first.get(image)
            if known is None or number < known[0]:
                first[image] = (number, entry.get("caption", ""))
        return [
            prompt_row(f"{image:012d}", caption, f"{path}: image {image}", caption_id=number)
            for image, (number, caption) in sorted(first.items())
        ]

    def files(self, row: PromptRow) -> Sequence[PurePosixPath]:
        return [PurePosixPath(f"{row.id}.png")]

    def write(self, folder: Path, row: PromptRow, pictures: Sequence[Path]) -> None:
        copy(pictures[0], folder / self.files(row)[0])

    def read(self, folder: Path, row: PromptRow) -> list[Image.Image]:
        return [open_picture(folder / self.files(row)[0])]
