"""Every schedule against the published table."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from infinity.config import PRESETS
from infinity.errors import UserError
from infinity.picture import picture_schedule, pixel_size
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


def test_a_picture_may_have_another_resolution_than_the_models_own() -> None:
    model = PRESETS["infinity-2b"]
    for resolution, side in (("0.06M", 256), ("0.25M", 512), ("0.60M", 768), ("1M", 1024)):
        schedule = picture_schedule(model, height=side, width=side, resolution=resolution)
        assert pixel_size(model, schedule) == (side, side)
        assert schedule.rope_reference == (64, 64)
    with pytest.raises(UserError, match="512 × 512; allowed: 1024 × 1024, 1120 × 896"):
        picture_schedule(model, height=512, width=512)


def test_a_tokenizer_with_gains_has_no_further_scales() -> None:
    model = PRESETS["embedded"]
    model = replace(model, tokenizer=replace(model.tokenizer, scale_gains=10))
    assert len(picture_schedule(model, resolution="0.06M")) == 7
    with pytest.raises(UserError, match=r"0\.60M has 12 scales, but .* was trained on 10"):
        picture_schedule(model, resolution="0.60M")
