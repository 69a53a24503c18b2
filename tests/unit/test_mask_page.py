"""The page of `stepvar show-masks`, without a model."""

import re
from pathlib import Path

import pytest
import torch

from stepvar_patch.experiments.masks.page import ScalePictures, SeenScale, write_mask_page


def pictures(si: int, side_px: int, kept: float, *, run: bool = True) -> ScalePictures:
    torch.manual_seed(si)
    scores = torch.rand(16)
    seen = SeenScale(
        grid=(4, 4), structure=scores, texture=scores, kept=(scores < kept).float(), run=run
    )
    return ScalePictures.of(si, seen, *torch.rand(3, 3, side_px, side_px))


@pytest.mark.parametrize(("side_px", "kind"), [(64, "png"), (1024, "webp")])
def test_a_page_of_large_pictures_stays_small(tmp_path: Path, side_px: int, kind: str) -> None:
    path = tmp_path / "page.html"
    write_mask_page(path, [pictures(si, side_px, 0.5) for si in range(2)], "p", "stepvar", 1)
    page = path.read_text()
    assert set(re.findall("data:image/(\\w+);", page)) == {kind}
    assert len(page) < 3 * 2**20


def test_the_bars_show_the_share_of_computed_tokens(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    scales = [pictures(0, 16, 2.0), pictures(1, 16, 0.0), pictures(2, 16, 2.0, run=False)]
    write_mask_page(path, scales, "p", "stepvar", 1)
    assert re.findall(r'<i style="height: ([\d.]+)%"', path.read_text()) == ["100.0", "0.0", "0.0"]
    assert scales[2].title == "scale 2: 4 × 4, not run"
