"""The first images of a fresh process, and after how many a mode pays off."""

from pathlib import Path

import pytest
from bench_cases import bench

from stepvar_patch.experiments.bench.record import Row
from stepvar_patch.experiments.bench.row import Sample
from stepvar_patch.experiments.bench.schema import Arm

pytestmark = pytest.mark.bench


def test_a_fresh_process_draws_the_first_images(work: Path) -> None:
    words = ["rounds=1", "arms={dense: {}, other: {dtype: bfloat16}, third: {}}"]
    record = bench(*words, "first_image=[dense, other]")
    assert record["rows"][2]["first_image"] is None
    for row in record["rows"][:2]:
        first = row["first_image"]
        times = ("start_ms", "load_ms", "first_ms", "second_ms", "third_ms")
        assert min(first[name] for name in times) > 0
        assert first["weights_mib"] > 0
    assert "break_even_images" not in record["rows"][0]["first_image"]
    assert "break_even_images" in record["rows"][1]["first_image"]


def row(load_ms: float, first_ms: float, later_ms: float) -> Row:
    made = Row(arm=Arm(label="x"), batch_size=1, about={"grids": []})
    made.first_image = {"load_ms": load_ms, "first_ms": first_ms}
    made.samples["back_to_back"] = [
        Sample(round=0, position=0, total_ms=later_ms, stages={("text", None): 1.0})
    ]
    return made


@pytest.mark.parametrize(
    ("load_ms", "first_ms", "later_ms", "images"),
    [
        (1000, 2900, 300, 5),  # 2000 ms late, 500 ms gained with every further image
        (1000, 2901, 300, 6),
        (2000, 1900, 300, 5),
        (900, 900, 300, 1),
        (1000, 1000, 800, None),
    ],
)
def test_break_even_is_where_the_slower_start_is_made_good(
    load_ms: float, first_ms: float, later_ms: float, images: int | None
) -> None:
    eager = row(1000, 900, 800)
    first = row(load_ms, first_ms, later_ms).to_json(eager)["first_image"]
    assert first["break_even_images"] == images


def test_a_second_draw_that_is_recorded_delays_the_break_even() -> None:
    eager, recorded = row(1000, 900, 800), row(1000, 900, 300)
    assert recorded.first_image is not None
    recorded.first_image["second_ms"] = 1801.0  # 1001 ms more than the baseline's, 500 ms a draw
    first = recorded.to_json(eager)["first_image"]
    assert first["break_even_images"] == 5
