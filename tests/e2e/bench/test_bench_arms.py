"""What arms a bench can hold: shipped files, random weights, and arms that cannot run."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from bench_cases import ATTENTION, PRECISION, bench
from tiny_model import CONFIG, REPOSITORY

from infinity.config import PRESETS, TextEncoderConfig
from stepvar_patch.cli import main
from stepvar_patch.experiments.bench import random_model
from stepvar_patch.experiments.bench.row import Drawer
from stepvar_patch.experiments.bench.schema import BenchConfig, arms
from stepvar_patch.experiments.loading import load_config
from stepvar_patch.experiments.pruning import draw_pruned, resolve_pruning

pytestmark = pytest.mark.bench

FILES = sorted((REPOSITORY / "configs" / "bench").glob("*.yaml"))


@pytest.mark.parametrize("path", sorted({*FILES} - {ATTENTION, PRECISION}), ids=lambda p: p.stem)
def test_every_shipped_file_is_valid_and_its_policies_fit(path: Path) -> None:
    config = load_config(BenchConfig, path)
    given = yaml.safe_load(path.read_text())
    assert given.keys() == {field.name for field in fields(BenchConfig)}
    shape = PRESETS[config.preset or "embedded"]
    kinds = {arm.label: resolve_pruning(arm, shape) for arm in arms(config)}
    assert kinds[config.baseline] is None
    assert any(policy is not None for policy in kinds.values())


def test_an_arm_that_cannot_run_says_why_and_the_others_go_on(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = bench("arms.inline.attention=flash_attn", "arms.balanced.pruning.scales.-9.run=true")
    rows = {row["arm"]: row for row in record["rows"]}
    assert "attention=flash_attn: " in rows["inline"]["error"]
    assert "-9" in rows["balanced"]["error"]
    assert rows["inline"]["back_to_back"] is None
    assert rows["dense"]["back_to_back"]["n"] == 3
    out = capsys.readouterr().out
    assert "Arms that do not run:" in out
    assert "- inline, batch 1: attention=flash_attn" in out
    assert main(["bench", "b.yaml", "attention=flash_attn"]) == 2
    assert "no arm could run" in capsys.readouterr().err


def test_an_arm_that_fails_later_keeps_what_it_has(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed, seen = Drawer.timed, []

    def breaks(self: Drawer, round_: int, position: int) -> Any:
        seen.append(json.loads(Path("out/b.json").read_text())["rounds_done"])
        if self.arm.label == "inline" and round_ == 2:
            raise RuntimeError("CUDA error: out of luck\nmore")
        return timed(self, round_, position)

    monkeypatch.setattr(Drawer, "timed", breaks)
    rows = {row["arm"]: row for row in bench()["rows"]}
    assert rows["inline"]["error"] == "RuntimeError: CUDA error: out of luck"
    assert rows["inline"]["back_to_back"]["n"] == 2
    assert rows["balanced"]["back_to_back"]["n"] == 3
    assert seen == [0] * 3 + [1] * 3 + [2] * 3, "the file is written after every round"


def test_every_draw_of_an_arm_is_of_other_pictures(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: dict[str, list[int]] = {}

    def drawn(pipeline: Any, policy: Any, *args: Any, **words: Any) -> Any:
        seeds.setdefault("dense" if policy is None else policy.name, []).extend(words["seed"])
        return draw_pruned(pipeline, policy, *args, **words)

    monkeypatch.setattr("stepvar_patch.experiments.bench.row.draw_pruned", drawn)
    bench("seed=5")
    draws = seeds["dense"][-4:]
    assert draws == list(range(draws[0], draws[0] + 4))
    assert seeds["dense"][0] == 5


def test_random_weights_batches_and_resolution(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PRESETS, "infinity-125m", CONFIG)
    words = ["weights=random", "preset=infinity-125m", "rounds=1", "batch_sizes=[1,3]"]
    words.append("arms={dense: {}}")
    record = bench(*words, "text_tokens=9", "resolution=0.25M", "dtype=bfloat16")
    assert "mean nothing" in record["note"]
    assert "mean nothing" in capsys.readouterr().out
    assert [(row["arm"], row["batch_size"]) for row in record["rows"]] == [
        ("dense", 1),
        ("dense", 3),
    ]
    one, three = record["rows"]
    assert (one["dtype"], one["picture_px"], len(one["grids"])) == ("bfloat16", [64, 64], 10)
    assert one["flops"]["per_image"] == pytest.approx(three["flops"]["per_image"], rel=1e-3)
    assert three["back_to_back"]["per_image_ms"] == pytest.approx(
        three["back_to_back"]["median_ms"] / 3, rel=1e-3
    )


def test_a_random_text_encoder_is_run_and_timed(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["weights=random", "preset=infinity-125m", "text_encoder=random", "rounds=1"]
    monkeypatch.setitem(PRESETS, "infinity-125m", CONFIG)
    assert main(["bench", "b.yaml", *words]) == 2
    assert "stands for flan-T5-XL, which this preset does not use" in capsys.readouterr().err
    text = TextEncoderConfig(kind="t5", width=384, max_tokens=64)
    monkeypatch.setitem(PRESETS, "infinity-125m", replace(CONFIG, text_encoder=text))
    small = {"d_model": 384, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    monkeypatch.setattr(random_model, "T5_XL", {**random_model.T5_XL, **small})
    record = bench(*words, "arms={dense: {}}")
    assert record["rows"][0]["back_to_back"]["stages_ms"]["text"] > 0
    plain = bench(*words, "arms={dense: {}}", "text_encoder=null")
    assert record["model"]["weights_mib"] > plain["model"]["weights_mib"] + 40


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["baseline=dens"], "baseline names 'dens'; did you mean 'dense'?"),
        (["kernels=[inlin]"], "kernels names 'inlin'; did you mean 'inline'?"),
        (["first_image=[inlin]"], "first_image names 'inlin'; did you mean 'inline'?"),
        (["weights=random"], "preset belongs to weights=random"),
        (["weights=random", "preset=infinity-3b"], "preset is 'infinity-3b'; did you mean"),
        (
            ["weights=random", "preset=infinity-2b", "text_encoder=t5"],
            "text_encoder is 't5'; allowed with weights=random: random or null",
        ),
        (["weights=none"], "weights: none does not exist"),
        (["arms.balanced.dtype=float16"], "arms.balanced.dtype = 'float16' must be"),
        (["arms.balanced.prunning=x"], "arms.balanced.prunning = 'x' is an unknown key"),
        (["arms.balanced.pruning=none.yaml"], "cannot read none.yaml"),
        (["arms.balanced.pruning.scales.-1.keep_ratio=2"], "keep_ratio = 2 must be less than"),
        (["rounds=0"], "rounds = 0 must be greater than or equal to 1"),
        (["aspect_ratio=1", "arms.dense={height: 32, width: 32}"], "arms.dense: aspect_ratio and"),
    ],
)
def test_each_mistake_is_told_with_its_place_and_code_2(
    work: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert main(["bench", "b.yaml", *words]) == 2
    assert told in capsys.readouterr().err
    assert not Path("out/b.json").exists()
