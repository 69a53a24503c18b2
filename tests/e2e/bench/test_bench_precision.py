"""``stepvar bench precision``: what a precision changes."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from bench_cases import PRECISION

from stepvar_patch.cli import main
from stepvar_patch.experiments.bench.precision_schema import PrecisionConfig
from stepvar_patch.experiments.loading import load_config

pytestmark = pytest.mark.bench


def test_what_a_precision_changes_under_the_same_and_under_its_own_history(
    work: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"weights={model}", "images=3", "batch_size=2", "device=cpu", "output=out/p.json"]
    arms = "arms={exact: {dtype: float32}, again: {dtype: float32}, half: {dtype: bfloat16}, "
    arms += "fp8: {fp8: true}, more: {dtype: bfloat16, against: [exact, half]}}"
    assert main(["bench", "precision", str(PRECISION), *words, arms]) == 0
    record = json.loads(Path("out/p.json").read_text())
    found = {(pair["arm"], pair["against"]): pair for pair in record["pairs"]}
    assert list(found) == [
        *(("again", "exact"), ("half", "exact"), ("more", "exact"), ("more", "half")),
    ]
    for equal in (found["again", "exact"], found["more", "half"]):
        assert equal["images"] == 3
        assert equal["same_history"]["logit_error"] == 0
        assert equal["own_history"]["bits_per_scale"] == [1.0] * 7
        assert equal["own_history"]["psnr_db"]["value"] == 100
    half = found["half", "exact"]
    errors = half["same_history"]["logit_error_per_scale"]
    assert 1e-4 < min(errors) <= half["same_history"]["logit_error"] <= max(errors) < 0.1
    assert half["same_history"]["bits"]["value"] > half["own_history"]["bits_last"]["value"] > 0.5
    assert "fp8 needs engine" in record["not_run"]["fp8"]
    assert record["environment"]["torch"]
    assert "| half against exact |" in capsys.readouterr().out


def test_an_arm_is_compared_with_earlier_ones(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_config(PrecisionConfig, PRECISION)
    given = yaml.safe_load(PRECISION.read_text())
    assert given.keys() == {field.name for field in fields(PrecisionConfig)}
    assert main(["bench", "precision", str(PRECISION), "arms.bfloat16.against=[fp8]"]) == 2
    assert "arms.bfloat16.against names 'fp8'" in capsys.readouterr().err


def test_random_weights_are_refused(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "precision", str(PRECISION), "weights=random"]) == 2
    assert "weights is random" in capsys.readouterr().err
