"""A damaged result makes a page or one sentence, never a traceback."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infinity.errors import UserError
from stepvar_patch.experiments.report.read import read_source
from stepvar_patch.experiments.report.write import write_report

pytest.importorskip("matplotlib")
CELL = {
    "cell": "a ratio=0.5",
    "images": 2,
    "psnr_db": 20.0,
    "psnr_se_db": 1.0,
    "ssim": 0.8,
    "bit_agreement": [1.0, None],
    "first_divergence": 1,
    "ms": 9.0,
    "time_ratio": 0.5,
    "time_ratio_iqr": None,
    "flop_ratio": 0.4,
}
TIMES = {
    "median_ms": 9.0,
    "min_ms": 8.0,
    "max_ms": 10.0,
    "speedup": 2.0,
    "stages_ms": {"blocks": 5.0, "decode": 4.0},
    "per_scale_ms": {"blocks": [1.0, 4.0]},
}
ROW = {
    "arm": "x",
    "batch_size": 1,
    "error": None,
    "grids": [[1, 1], [2, 2]],
    "kept_per_scale": [1, 2],
    "flops": {"per_image": 1e12, "ratio": 2.0},
    "back_to_back": TIMES,
}
METRICS = {
    "psnr_db": {"value": 20.0, "low": 19.0, "high": 21.0, "n": 2, "missing": ""},
    "flops": {"value": 2.0, "low": None, "high": None, "n": 1, "missing": ""},
    "bits_last": {"value": 0.5, "low": None, "high": None, "n": 1, "per_scale": [1.0, None]},
    "fid": {"value": None, "missing": "missing: a file"},
}
RESULTS: list[dict[str, Any]] = [
    {
        "title": "t",
        "command": "c",
        "cells": [CELL, {**CELL, "cell": "b"}],
        "environment": {},
    },
    {"format": "stepvar-bench/1", "command": "c", "environment": {"gpu": None}, "rows": [ROW, ROW]},
    {"command": "c", "runs": {"dense": METRICS, "pruned": METRICS}},
    {"title": "t", "command": "c", "rows": [{"label": "x", "images": 2, "cells": METRICS}]},
    {"what": "w", "command": "c", "environment": {"os": "x"}, "a": {"b": {"c": 1}, "d": {"c": 2}}},
]
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.sampled_from([[], {}, [[]], [None], {"": {}}, 10**400, "<script>", "$\\frac{", "\ud800", 0]),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything inside a value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, inner in inside:
        found.append((*path, key))
        if isinstance(inner, dict | list):
            found += places(inner, (*path, key))
    return found


@st.composite
def damaged(draw: st.DrawFn) -> dict[str, Any]:
    """A result in which one to three values are others, or gone."""
    value = deepcopy(draw(st.sampled_from(RESULTS)))
    for _ in range(draw(st.integers(1, 3))):
        *outer, last = draw(st.sampled_from(places(value) or [("new",)]))
        node: Any = value
        for key in outer:
            node = node[key]
        if last != "new" and draw(st.booleans()):
            del node[last]
        else:
            node[last] = deepcopy(draw(LEAVES))
    return value


FILES = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@settings(FILES, max_examples=300)
@given(value=damaged())
def test_a_damaged_result_is_read_or_refused_in_one_sentence(
    tmp_path: Path, value: dict[str, Any]
) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps(value))
    sentence = ""
    try:
        assert read_source(path).commands
    except UserError as error:
        sentence = str(error)
    assert "\n" not in sentence


@settings(FILES, max_examples=25)
@given(value=damaged())
def test_what_is_read_makes_a_page(tmp_path: Path, value: dict[str, Any]) -> None:
    (tmp_path / "r.json").write_text(json.dumps(value))
    try:
        made = write_report([tmp_path / "r.json"], tmp_path / "p.html", tmp_path / "plots", "c")
    except UserError:
        return
    assert b"<script" not in Path(made["page"]).read_bytes()
