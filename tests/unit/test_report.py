"""What a report reads from results, and how it draws them."""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from infinity.errors import UserError
from stepvar_patch.experiments.report import charts
from stepvar_patch.experiments.report.model import Arm, Bars, Profile, Quality
from stepvar_patch.experiments.report.read import read_source
from stepvar_patch.experiments.report.write import write_report

pytest.importorskip("matplotlib")
RESULTS = Path(__file__).parents[2] / "results"
COMMITTED = sorted(RESULTS.rglob("*.json"))


def cell(name: str, **values: Any) -> dict[str, Any]:
    given = {"images": 2, "psnr_db": 20.0, "psnr_se_db": 1.0, "ssim": 0.8, "ms": 9.0}
    given |= {"bit_agreement": [1.0, None, 0.5], "first_divergence": 1, "time_ratio": 0.5}
    return {**given, "cell": name, "time_ratio_iqr": None, "flop_ratio": 0.4, **values}


def table(folder: Path, *cells: dict[str, Any], **extra: Any) -> Path:
    folder.mkdir(exist_ok=True)
    value = {"title": "t", "command": "stepvar ablate x.yaml", "cells": cells, **extra}
    (folder / "table.json").write_text(json.dumps(value))
    return folder


def test_an_ablation_gives_its_cells_as_points_and_its_grid_as_lines(tmp_path: Path) -> None:
    names = ("random", "half ratio=0.5", "half ratio=0.9", "seed=1", "a, b=2")
    source = read_source(table(tmp_path / "a", *map(cell, names), news={"unknown": 1}))
    assert [(arm.series, arm.point) for arm in source.arms] == [
        ("random", ""),
        ("half", "0.5"),
        ("half", "0.9"),
        ("seed", "1"),
        ("a", "2"),
    ]
    assert source.arms[0].speeds == {"flops": 2.5, "loop": 2.0}
    assert source.arms[0].quality["psnr_db"] == Quality(value=20, low=19, high=21)
    assert source.commands == ("stepvar ablate x.yaml",)
    assert source.tables[0].rows[1][:4] == ["half ratio=0.5", "2.50×", "2.00×", "20.00 ± 1.00"]


def test_an_uncounted_cell_has_no_point_against_flops(tmp_path: Path) -> None:
    one, two = read_source(table(tmp_path / "a", cell("x", flop_ratio=None), cell("y"))).arms
    assert set(one.speeds) == {"loop"}
    assert charts.speed_quality([one, two], "flops", "psnr_db") is None
    assert charts.speed_quality([one, two], "loop", "psnr_db") is not None


def test_pictures_that_are_those_of_dense_do_not_stretch_the_axis_of_psnr(tmp_path: Path) -> None:
    same, near = read_source(table(tmp_path / "a", cell("x", psnr_db=100.0), cell("y"))).arms
    assert set(same.quality) == {"ssim"}
    assert set(near.quality) == {"psnr_db", "ssim"}


def bench(path: Path, *rows: dict[str, Any]) -> Path:
    value = {"format": "stepvar-bench/1", "command": "stepvar bench b.yaml", "new": 1}
    value |= {"environment": {"gpu": None, "torch": "2"}, "note": "random weights", "rows": rows}
    path.write_text(json.dumps(value))
    return path


def row(arm: str, ms: float, **values: Any) -> dict[str, Any]:
    times = {"median_ms": ms, "min_ms": ms, "max_ms": 2 * ms, "speedup": 100 / ms, "samples": []}
    times |= {"stages_ms": {"decode": ms / 4, "blocks": ms / 2, "head": 0.001}}
    times |= {"per_scale_ms": {"blocks": [1.0, ms / 2], "head": [0.5, 0.5]}}
    known = {"batch_size": 1, "grids": [[1, 1], [4, 4]], "kept_per_scale": [1, 8]}
    return {"arm": arm, **known, "flops": {"ratio": 2, "per_image": 3e12}, **values} | (
        {} if "error" in values else {"back_to_back": times}
    )


def test_a_benchmark_gives_speeds_stages_and_scales(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    rows = [row("dense", 100), row("fast", 40, batch_size=4), row("bad", 1, error="no flash")]
    source = read_source(bench(path, *rows))
    assert [arm.label for arm in source.arms] == ["dense, batch 1", "fast, batch 4"]
    assert source.arms[1].speeds == {"time": 2.5, "flops": 2}
    assert source.summary.endswith("Random weights.")
    by_stage, by_scale = source.bars
    assert list(by_stage.stages) == ["blocks", "decode", "rest"]
    assert by_stage.rows["dense, batch 1"] == pytest.approx([50, 25, 0.001])
    assert by_scale.stages == ("1×1", "4×4")
    assert by_scale.rows["fast, batch 4"] == pytest.approx([1.5 / 4, 20.5 / 4])
    assert source.profiles[0].lines["fast, batch 4"] == [1, 0.5]
    fast = list(source.tables[0].rows)[1]
    assert fast == ["fast, batch 4", "10.0", "10.0 … 20.0", "2.50×", "2.00×", "3", "–"]
    assert list(source.tables[1].rows) == [["bad, batch 1", "no flash"]]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([row("a", 1, error="x")], "none has times"),
        ([row("a", 1, batch_size=0)], "batch_size must be at least 1"),
        ([row("a", 1, grids=7)], "rows.0.grids: must be a list"),
    ],
)
def test_a_benchmark_that_says_nothing_is_refused(
    tmp_path: Path, rows: list[dict[str, Any]], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        read_source(bench(tmp_path / "b.json", *rows))


def estimate(value: float | None, **more: Any) -> dict[str, Any]:
    return {"value": value, "low": None, "high": None, "n": 5, "missing": "", **more}


def test_an_evaluation_gives_points_with_intervals_and_says_what_is_missing(
    tmp_path: Path,
) -> None:
    lpips = estimate(None, missing="missing: no file")
    runs = {
        "pruned": {
            "psnr_db": estimate(20, low=19, high=22),
            "flops": estimate(2.0),
            "speedup": estimate(1.5),
            "bits_last": estimate(0.5, per_scale=[1.0, None, 0.5]),
            "lpips": lpips,
        },
        "dense": {"flops": estimate(1.0), "frechet_64": estimate(140), "lpips": lpips},
    }
    (tmp_path / "eval.json").write_text(json.dumps({"command": "stepvar eval e", "runs": runs}))
    source = read_source(tmp_path)
    pruned, dense = source.arms
    assert pruned.speeds == {"flops": 2, "time": 1.5}
    assert pruned.quality == {"psnr_db": Quality(value=20, low=19, high=22)}
    assert dense.speeds == {"flops": 1, "loop": 1, "time": 1}
    assert source.profiles[0].lines == {"pruned": (1, None, 0.5)}
    values, missing = source.tables
    assert list(values.head) == [
        "run",
        "PSNR dB ↑",
        "FLOPs × ↑",
        "speed-up × ↑",
        "bits % ↑",
        "FD64 ↓",
    ]
    assert list(values.rows)[1] == ["dense", "–", "1.00", "–", "–", "140.0"]
    assert list(missing.rows) == [["lpips", "missing: no file"]]


def test_a_table_gives_points_and_published_values(tmp_path: Path) -> None:
    cells = {"flops": estimate(2.1), "fid": estimate(30, low=28, high=32), "hps": estimate(None)}
    rows = [{"label": f"ours keep_ratio={x}", "images": 9, "cells": cells} for x in (0.3, 0.5)]
    published = {"method": "FastVAR", "model": "2B", "values": {"geneval": 0.7}, "source": "paper"}
    value = {"title": "main", "command": "c", "rows": rows, "published": [published]}
    (tmp_path / "table.json").write_text(json.dumps(value))
    source = read_source(tmp_path)
    assert [(arm.series, arm.point) for arm in source.arms] == [("ours", "0.3"), ("ours", "0.5")]
    assert source.arms[0].quality == {"fid": Quality(value=30, low=28, high=32)}
    assert list(source.tables[-1].rows) == [["FastVAR", "2B", "–", "0.7", "paper", "no"]]
    value["rows"] = [rows[0], rows[0]]
    (tmp_path / "table.json").write_text(json.dumps(value))
    with pytest.raises(UserError, match="a label of its own"):
        read_source(tmp_path)


def test_an_attention_benchmark_gives_a_table_per_shape(tmp_path: Path) -> None:
    case = {"scale": 9, "kind": "ragged", "heads": 6, "head_dim": 64, "queries": [3, 5]}
    case |= {"keys": [8, 8], "backends": [{"backend": "sdpa", "median_ms": 1.234, "n": 3}]}
    value = {"format": "stepvar-bench-attention/1", "command": "c", "environment": {}}
    (tmp_path / "a.json").write_text(json.dumps({**value, "cases": [case]}))
    (table,) = read_source(tmp_path / "a.json").tables
    assert table.title == "scale 9, ragged: 3+5 queries on 2 × 8 keys, 6 heads of 64"
    assert list(table.rows) == [["sdpa", "1.23", "–", "–", "–", ""]]


def test_a_record_gives_every_figure(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    rows = {"a": {"n": 1, "x": 0.123456789}, "b": {"n": 2, "x": None}}
    value = {"what": "w", "command": "c", "environment": {"gpu": "H200"}, "n": 197, "rows": rows}
    value["list"] = [{"kills": 3}, {"kills": [4, 5]}]
    path.write_text(json.dumps(value))
    source = read_source(path)
    assert (source.summary, source.commands, source.environment) == ("w", ["c"], {"gpu": "H200"})
    assert [list(table.rows) for table in source.tables] == [
        [["n", "197"]],
        [["a", "1", "0.12346"], ["b", "2", "–"]],
        [["1", "3"], ["2", "4, 5"]],
    ]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: str(path.relative_to(RESULTS)))
def test_every_committed_result_can_be_shown(path: Path) -> None:
    source = read_source(path)
    assert source.tables
    assert all(source.commands)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[]", "must hold a JSON object"),
        ('{"a": NaN}', "NaN is no JSON number"),
        ('{"a": 1e308}', "is too large to be a figure"),
        ('{"a": 1' + 400 * "0" + "}", "is too large to be a figure"),
        ('{"a": 1}', "is no result that a report knows"),
        ('{"cells": [], "command": "c", "title": "t"}', "cells is empty"),
        (
            '{"cells": [{"cell": 1}], "command": "c", "title": "t"}',
            "cells.0.cell: must be a string, not '1'",
        ),
        ('{"runs": {}, "command": "c"}', "runs is empty"),
        (
            '{"runs": {"a": {"psnr_db": 3}}, "command": "c"}',
            "runs.a.psnr_db: must be an object, not '3'",
        ),
        ('{"what": "w", "command": "c", "environment": 3}', "environment must be an object"),
        ('{"what": "w", "command": "c", "a":' + 9 * '{"a":' + "1" + 10 * "}", "nested too deeply"),
    ],
)
def test_a_damaged_result_is_told_in_one_sentence(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(told)) as error:
        read_source(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_cells_with_unequal_scales_are_refused(tmp_path: Path) -> None:
    folder = table(tmp_path / "a", cell("x"), cell("y", bit_agreement=[1.0]))
    with pytest.raises(UserError, match="as many scales in every cell"):
        read_source(folder)


def test_a_ratio_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be above 0"):
        read_source(table(tmp_path / "a", cell("x", flop_ratio=1e-320)))


def test_what_is_no_file_of_results_is_refused(tmp_path: Path) -> None:
    binary = tmp_path / "b.json"
    binary.write_bytes(b"\xff\xfe\x00")
    for path, told in (
        (tmp_path / "none.json", "cannot be read"),
        (tmp_path, "holds neither table.json nor eval.json nor run.jsonl"),
        (binary, "is not a text in UTF-8"),
    ):
        with pytest.raises(UserError, match=told):
            read_source(path)


def arm(series: str, x: float, y: float, point: str = "") -> Arm:
    return Arm(
        label=series,
        series=series,
        point=point,
        speeds={"flops": x, "time": x},
        quality={"psnr_db": Quality(value=y)},
    )


def text_of(svg: str) -> list[str]:
    root = ElementTree.fromstring(svg)
    return ["".join(e.itertext()).strip() for e in root.iter() if e.tag.endswith("text")]


def test_a_chart_names_every_series_as_text_whatever_it_is_called() -> None:
    names = ["<script>x</script>", "$\\frac{", "a & b", "é" * 60]
    svg = charts.speed_quality(
        [arm(name, 2, i) for i, name in enumerate(names)], "flops", "psnr_db"
    )
    assert svg is not None
    shown = text_of(svg)
    assert set(names[:3]) <= set(shown)
    assert "<script>" not in svg
    assert "é" * 14 + "…" + "é" * 15 in shown


def test_a_chart_takes_its_ink_from_the_page_and_is_the_same_every_time() -> None:
    arms = [arm("a", 1.5, 20, "0.5"), arm("a", 2.5, 17, "0.3"), arm("b", 2, 21)]
    first, second = (charts.speed_quality(arms, "time", "psnr_db") for _ in range(2))
    assert first == second
    assert first is not None
    assert "currentColor" in first
    assert "#01020" not in first
    assert {"0.5", "0.3", "a", "b"} <= set(text_of(first))
    assert ElementTree.fromstring(charts.standalone(first)).get("style")


def test_a_point_is_not_labelled_with_the_value_it_stands_at() -> None:
    arms = [arm("a", 1.9, 20, "1.9"), arm("a", 2.5, 17, "0.3")]
    shown = text_of(charts.speed_quality(arms, "flops", "psnr_db") or "")
    assert "0.3" in shown
    assert "1.9" not in shown


def test_names_beside_a_chart_never_overlap() -> None:
    places = charts._apart([0.1, 0.1, 0.11, 0.99, 1.0], 0.1)
    gaps = [b - a for a, b in pairwise(places)]
    assert min(gaps) >= 0.1 - 1e-9
    assert min(places) >= 0
    assert max(places) <= 1


def test_profiles_and_bars_show_their_names() -> None:
    profile = Profile(title="bits", lines={"x": [1.0, None, 0.5], "gone": [None, None, None]})
    assert "x" in text_of(charts.profile(profile))
    bars = Bars(title="ms", stages=("text", "scales"), rows={"dense": (1.0, 9.0), "fast": (1, 4)})
    assert {"dense", "fast", "text", "scales", "ms"} <= set(text_of(charts.bars(bars)))


def test_a_report_tells_equal_names_of_two_results_apart(tmp_path: Path) -> None:
    folders = [table(tmp_path / name, cell("half"), title=name) for name in ("one", "two")]
    made = write_report(folders, tmp_path / "new" / "page.html", tmp_path / "plots", "c <&>")
    page = (tmp_path / "new" / "page.html").read_text()
    assert {"half (one)", "half (two)"} <= set(re.findall(r">(half \(\w+\))<", page))
    assert "c &lt;&amp;&gt;" in page
    assert made["bytes"] == (tmp_path / "new" / "page.html").stat().st_size
    names = {Path(path).name for path in made["plots"]}
    assert {"psnr-flops.svg", "ssim-loop.svg"} <= names
    assert {path.name for path in (tmp_path / "plots").iterdir()} == names
