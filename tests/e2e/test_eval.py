"""``stepvar eval`` through the real command line on a tiny model."""

import json
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml
from tiny_model import REPOSITORY

from infinity.io.files import write_error
from infinity.io.images import read_png
from stepvar_patch.cli import main
from stepvar_patch.experiments.codes import read_codes
from stepvar_patch.experiments.evaluate.schema import EvalConfig
from stepvar_patch.experiments.loading import load_config

BALANCED = f"pruning={REPOSITORY}/configs/pruning/stepvar_balanced.yaml"


@pytest.fixture
def work(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "p.txt").write_text("a red apple\na blue car\nthree cats\n")
    (tmp_path / "c.yaml").write_text(
        f"model: {model}\nprompts: p.txt\noutput: out\ndevice: cpu\ncontact_sheet: false\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def evaluation(work: Path, *words: str) -> dict[str, dict]:
    assert main(["eval", "c.yaml", *words]) == 0
    runs: dict[str, dict] = json.loads((work / "out" / "eval.json").read_text())["runs"]
    return runs


def test_a_pruned_run_is_compared_with_dense_bit_by_bit_and_resumed(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluation(work, BALANCED, "images=2")["pruned"]
    assert found["psnr_db"]["n"] == 2
    assert found["psnr_db"]["low"] <= found["psnr_db"]["value"] <= found["psnr_db"]["high"]
    assert found["bits_last"]["per_scale"][0] == 1
    assert 0.3 < found["bits_last"]["value"] < 1
    assert found["speedup"]["value"] > 0
    assert found["flops"]["value"] > 1
    assert "psnr_db" in capsys.readouterr().out
    assert (work / "out" / "eval.csv").read_text().startswith("run,metric,value,low,high,n,missing")
    before = (work / "out" / "pruned" / "scores.json").read_text()
    rows = (work / "out" / "pruned" / "run.jsonl").read_text()
    assert evaluation(work, BALANCED, "images=2")["pruned"] == found
    assert (work / "out" / "pruned" / "run.jsonl").read_text() == rows
    assert evaluation(work, BALANCED)["pruned"]["psnr_db"]["n"] == 3
    assert (work / "out" / "pruned" / "scores.json").read_text() != before


def test_keeping_everything_agrees_in_every_bit(work: Path) -> None:
    found = evaluation(work, BALANCED, "pruning.scales.*.keep_ratio=1", "images=1")["pruned"]
    assert set(found["bits_last"]["per_scale"]) == {1.0}
    assert found["first_divergence"]["missing"] == "missing: no bit differs from dense"
    assert found["psnr_db"]["value"] == 100
    assert found["ssim"]["value"] == 1


def test_every_metric_without_its_file_says_which_and_where(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluation(work, BALANCED, "images=1", "files.inception=nowhere.pth")["pruned"]
    missing = {name: e["missing"] for name, e in found.items() if e["missing"]}
    assert missing["fid"] == "missing: files.inception (nowhere.pth)"
    assert missing["hps"].startswith("missing: files.hps (")
    assert "files.drawings" in missing["name_rank"]
    assert {"lpips", "clip_score", "clip_fid", "image_reward", "kid"} <= missing.keys()
    assert all(found[name]["value"] is None for name in missing)
    assert "files.inception (nowhere.pth)" in capsys.readouterr().out


def test_a_finished_run_is_scored_as_it_stands(work: Path) -> None:
    assert main(["generate", "c.yaml", "output=dense"]) == 0
    assert main(["generate", "c.yaml", BALANCED, "output=mine"]) == 0
    found = evaluation(work, "run=mine", "reference=dense")["mine"]
    assert found["psnr_db"]["n"] == 3
    assert "stepvar eval writes them" in found["bits_last"]["missing"]
    alone = evaluation(work, "run=mine")["mine"]
    assert alone["psnr_db"]["missing"] == "missing: no dense run to compare with"


def test_codes_survive_their_file(work: Path) -> None:
    evaluation(work, BALANCED, "images=1")
    name = next((work / "out" / "dense").glob("*.png")).stem
    codes = read_codes(work / "out" / "dense", name)
    assert codes is not None
    assert codes[0].shape == (6, 1, 1)
    assert all(set(signs.unique().tolist()) <= {-1, 1} for signs in codes.values())
    assert codes[max(codes)].dtype == torch.int8


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["images=0"], "images = 0 must be greater than or equal to 1"),
        (["reference=x"], "reference belongs to run"),
        (["files.inceptoin=x"], "did you mean 'inception'?"),
        (["fid_protocol=dirty"], "fid_protocol = 'dirty' must be 'clean' or 'tensorflow'"),
        (["run=nowhere"], "nowhere: holds no run.jsonl"),
        (["files.inception=p.txt"], "p.txt: "),
        (["files.clip=empty"], "empty: not the folder of a CLIP model"),
    ],
)
def test_a_mistake_is_one_sentence(
    work: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (work / "empty").mkdir()
    assert main(["eval", "c.yaml", *words]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error


def test_runs_of_other_prompts_are_not_compared(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "c.yaml", "output=dense", "seed=1"]) == 0
    assert main(["generate", "c.yaml", "output=mine"]) == 0
    assert main(["eval", "c.yaml", "run=mine", "reference=dense"]) == 2
    assert "compare runs of the same prompts and seeds" in capsys.readouterr().err
    shutil.rmtree(work / "dense")


def test_the_shipped_config_is_complete() -> None:
    path = REPOSITORY / "configs" / "eval.yaml"
    config = load_config(EvalConfig, path)
    given = yaml.safe_load(path.read_text())
    assert given.keys() == {field.name for field in fields(config)}
    assert given["files"].keys() == {field.name for field in fields(config.files)}


def test_a_disk_that_fills_at_the_codes_is_one_sentence(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, write: object) -> None:
        raise write_error(path, OSError(28, "No space left on device"))

    monkeypatch.setattr("stepvar_patch.experiments.codes.write_atomic", full)
    assert main(["eval", "c.yaml", BALANCED, "images=1"]) == 2
    error = capsys.readouterr().err
    assert "the disk is full" in error
    assert "Traceback" not in error


def test_a_last_scale_that_is_left_out_has_no_share_of_equal_bits(work: Path) -> None:
    pruning = "pruning={kind: dense, scales: {'-1': {run: false}}}"
    bits = evaluation(work, pruning, "images=1")["pruned"]["bits_last"]
    assert bits["missing"] == "missing: codes of the last scale, which is left out"
    assert (bits["value"], bits["per_scale"][-2:]) == (None, [1, None])


def test_threads_are_those_of_the_config_and_stay(work: Path) -> None:
    evaluation(work, BALANCED, "images=1", "threads=1")
    picture = next((work / "out" / "pruned").glob("*.png"))
    assert read_png(picture)[1].settings["threads"] == 1
    evaluation(work, BALANCED, "images=2")
    drawn = [read_png(p)[1].settings["threads"] for p in (work / "out" / "pruned").glob("0*.png")]
    assert drawn == [1, 1]


@pytest.mark.parametrize("ms", [{}, {"scales": 5.0}])
def test_a_manifest_without_times_has_no_speed(work: Path, ms: dict[str, float]) -> None:
    assert main(["generate", "c.yaml", "output=mine"]) == 0
    manifest = work / "mine" / "run.jsonl"
    rows = [{**json.loads(line), "ms": ms} for line in manifest.read_text().splitlines()]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = evaluation(work, "run=mine")["mine"]
    assert found["ms"]["missing"] == "missing: times of all pictures in run.jsonl"
