"""``stepvar report`` through the real command line."""

import json
import re
from pathlib import Path

import pytest
from runs import stepvar
from tiny_model import REPOSITORY, write_tiny_model

from stepvar_patch.cli import main

pytest.importorskip("matplotlib")
SCORE = REPOSITORY / "results" / "ablations" / "score"
RECORDS = sorted((REPOSITORY / "results").glob("*.json"))


def test_every_committed_result_makes_one_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, plots = tmp_path / "new" / "page.html", tmp_path / "plots"
    words = [str(path) for path in (SCORE, *RECORDS)]
    assert stepvar("report", *words, "--output", str(page), "--plots", str(plots), "--json") == 0
    made = json.loads(capsys.readouterr().out)
    text = page.read_text()
    assert made["page"] == str(page)
    assert made["bytes"] == page.stat().st_size < 10 * 2**20
    assert sorted(made["plots"]) == sorted(map(str, plots.iterdir()))
    assert json.loads((SCORE / "table.json").read_text())["command"] in text
    assert "NVIDIA H200" in text
    assert "src=" not in text


def test_a_benchmark_is_shown(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "model")
    balanced = REPOSITORY / "configs" / "pruning" / "stepvar_balanced.yaml"
    (tmp_path / "b.yaml").write_text(
        f"weights: {tmp_path}/model\noutput: {tmp_path}/b.json\ndevice: cpu\nwarmup: 0\n"
        f"rounds: 1\nbaseline: dense\narms: {{dense: {{}}, half: {{pruning: {balanced}}}}}\n"
    )
    assert main(["bench", str(tmp_path / "b.yaml")]) == 0
    page = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "b.json"), "--output", str(page)]) == 0
    text = page.read_text()
    assert {"b, ms per image by stage", "b, ms per image by scale"} <= set(
        re.findall("<figcaption>(.*?)</figcaption>", text)
    )
    assert "<td>half</td>" in text


def test_an_evaluation_and_its_runs_are_shown(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "model")
    (tmp_path / "p.txt").write_text("a red apple\na blue car\n")
    (tmp_path / "c.yaml").write_text(
        f"model: {tmp_path}/model\nprompts: {tmp_path}/p.txt\noutput: {tmp_path}/out\n"
        "device: cpu\nfiles: {drawings: none.zip}\n"
    )
    balanced = f"pruning={REPOSITORY}/configs/pruning/stepvar_balanced.yaml"
    assert main(["eval", str(tmp_path / "c.yaml"), balanced]) == 0
    out, page = tmp_path / "out", tmp_path / "page.html"
    assert main(["report", str(out), "--output", str(page)]) == 0
    text = page.read_text()
    shown = set(re.findall("<figcaption>(.*?)</figcaption>", text))
    assert {"share of bits equal to dense", "dense", "pruned"} <= shown
    assert "files.drawings" in text
    assert text.count("<img") == 4


def test_a_table_is_shown_with_the_pictures_of_its_arms(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "model")
    (tmp_path / "p.txt").write_text("a red apple\n")
    (tmp_path / "c.yaml").write_text(
        f"model: {tmp_path}/model\nprompts: {tmp_path}/p.txt\noutput: unused\ndevice: cpu\n"
    )
    policies = REPOSITORY / "configs" / "pruning"
    (tmp_path / "t.yaml").write_text(
        f"model: tiny\noutput: {tmp_path}/out\n"
        f"models: {{tiny: {{config: {tmp_path}/c.yaml, columns: [flops, psnr_db, fid]}}}}\n"
        f"arms:\n  a half: ['pruning={policies}/stepvar_balanced.yaml']\n"
        f"  a third: ['pruning={policies}/stepvar_fast.yaml']\n"
    )
    assert main(["table", str(tmp_path / "t.yaml")]) == 0
    page = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "out" / "tiny"), "--output", str(page)]) == 0
    text = page.read_text()
    shown = re.findall("<figcaption>(.*?)</figcaption>", text)
    assert [name for name in shown if name in ("dense", "a_half", "a_third")] == [
        "dense",
        "a_half",
        "a_third",
    ]
    assert "PSNR dB ↑, against times fewer FLOPs than dense" in shown
    assert "<td>fid</td><td>missing: files.inception" in text


def test_runs_stand_side_by_side_and_what_is_left_out_is_said(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (work / "p.txt").write_text("".join(f"a <b>thing</b> {i}\n" for i in range(14)))
    for name in ("one", "two"):
        assert stepvar("generate", "c.yaml", "prompts=p.txt", f"output={name}") == 0
    (work / "two" / "00014_0.png").unlink(missing_ok=True)
    assert stepvar("report", "one", "two", "one", "--output", "page.html") == 0
    page = (work / "page.html").read_text()
    assert page.count("<img") == 24
    assert "2 more pictures are in the folders" in page
    assert "a &lt;b&gt;thing&lt;/b&gt; 0" in page
    assert "milliseconds per image" in page
    assert "page.html, " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is not valid JSON"),
        ('{"cells": 3, "command": "c", "title": "t"}', "cells: must be a list, not '3'"),
        ("{}", "is no result that a report knows"),
    ],
)
def test_a_mistake_is_one_sentence_and_no_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, told: str
) -> None:
    (tmp_path / "r.json").write_text(text)
    page = tmp_path / "page.html"
    assert stepvar("report", str(SCORE), str(tmp_path / "r.json"), "--output", str(page)) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1
    assert not page.exists()


def test_a_place_that_cannot_be_written_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert stepvar("report", str(SCORE), "--output", str(tmp_path / "file" / "page.html")) == 2
    assert "cannot write" in capsys.readouterr().err


def test_a_damaged_mask_picture_is_told(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stepvar("generate", "c.yaml", "contact_sheet=false") == 0
    picture = min((work / "out").glob("*.png"))
    picture.with_suffix(".masks.png").write_bytes(picture.read_bytes()[:100])
    assert stepvar("report", "out", "--output", "page.html") == 2
    assert ".masks.png cannot be read as a PNG" in capsys.readouterr().err
