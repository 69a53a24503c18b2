"""MJHQ-30K: one picture per prompt in a folder per category."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from PIL import Image

from infinity.errors import UserError
from infinity.io.prompts import PromptRow
from stepvar_patch.experiments.benchmarks.layout import copy, open_picture, prompt_row, read_json

CATEGORIES = (
    *("animals", "art", "fashion", "food", "indoor"),
    *("landscape", "logo", "people", "plants", "vehicles"),
)


class Mjhq30K:
    """``<category>/<id>.png``, beside which lie the real pictures for FID.

    Source: Li et al. 2024 (Playground v2.5), the data set's ``meta_data.json``.
    """

    name, images = "mjhq", 1

    def prompts(self, path: Path) -> list[PromptRow]:
        """The entries of ``meta_data.json``: id → category and prompt."""
        entries = read_json(path)
        if not isinstance(entries, dict) or not entries:
            raise UserError(f"{path}: must be an object of id → category and prompt")
        rows = []
        for row_id, entry in entries.items():
            where = f"{path}: {row_id}"
            category = entry.get("category") if isinstance(entry, dict) else None
            if category not in CATEGORIES:
                raise UserError(f"{where}: category must be one of {', '.join(CATEGORIES)}")
            rows.append(prompt_row(row_id, entry.get("prompt"), where, category=category))
        return rows

    def files(self, row: PromptRow) -> Sequence[PurePosixPath]:
        return [PurePosixPath(row.extra["category"]) / f"{row.id}.png"]

    def write(self, folder: Path, row: PromptRow, pictures: Sequence[Path]) -> None:
        copy(pictures[0], folder / self.files(row)[0])

    def read(self, folder: Path, row: PromptRow) -> list[Image.Image]:
        return [open_picture(folder / self.files(row)[0])]
