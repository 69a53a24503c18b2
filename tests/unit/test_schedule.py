"""Every schedule against the published table."""

import json
from pathlib import Path

import pytest

from infinity.schedule import TEMPLATES, nearest_aspect_ratio, scale_schedule

TABLE = json.loads((Path(__file__).parents[1] / "golden" / "scale_schedules.json").read_text())


def test_templates_are_the_published_ones_in_order() -> None:
    assert list(TEMPLATES) == TABLE["template_order"]


@pytest.mark.parametrize("ratio", list(TABLE["templates"]))
@pytest.mark.parametrize("resolution", ["0.06M", "0.25M", "0.60M", "1M"])
def test_schedule_is_the_published_one(ratio: str, resolution: str) -> None:
    entry = TABLE["templates"][ratio][resolution]
    schedule = scale_schedule(float(ratio), resolution)  # type: ignore[arg-type]
    assert [[1, h, w] for h, w in schedule.grids] == entry["scales"]
    assert list(schedule.tokens_per_scale) == entry["tokens_per_scale"]
    assert schedule.offsets[-1] == entry["total_tokens"]
    assert [16 * n for n in schedule.grids[-1]] == entry["pixel_h_w"]


def test_ratio_is_mapped_to_the_nearest_template() -> None:
    assert nearest_aspect_ratio(4 / 3) == 1.333
    assert nearest_aspect_ratio(9 / 16) == 0.571
    assert nearest_aspect_ratio(100.0) == 3.0


@pytest.mark.parametrize("ratio", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_ratio_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="aspect ratio"):
        nearest_aspect_ratio(ratio)


def test_latent_grids_double_under_patchify() -> None:
    schedule = scale_schedule(1.5, "0.06M")
    assert schedule.latent_grids(False) == schedule.grids
    assert schedule.latent_grids(True) == tuple((2 * h, 2 * w) for h, w in schedule.grids)
