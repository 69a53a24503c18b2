"""``stepvar table`` through the real command line on a tiny model."""

import csv
import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml
from fake_pipeline import FakePipeline, write_model_directory
from tiny_model import REPOSITORY

from infinity.config import PRESETS
from infinity.errors import UserError
from stepvar_patch.cli import main
from stepvar_patch.experiments.check import check
from stepvar_patch.experiments.estimate import Estimate
from stepvar_patch.experiments.evaluate.arms import Arm, DrawnArm, draw_arms
from stepvar_patch.experiments.evaluate.scoring import Scoring, evaluate
from stepvar_patch.experiments.loading import load_config
from stepvar_patch.experiments.schema import GenerateConfig
from stepvar_patch.experiments.table import run as tables
from stepvar_patch.experiments.table.schema import (
    Benchmarks,
    TableConfig,
    load_published,
    table_cells,
)
from stepvar_patch.progress import RunProgress
from stepvar_patch.terminal import talk

TABLES = sorted((REPOSITORY / "configs" / "tables").glob("[!p]*.yaml"))
PRUNING = REPOSITORY / "configs" / "pruning"


@pytest.fixture
def work(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("a red apple\na blue car\n")
    (tmp_path / "c.yaml").write_text(
        f"model: {model}\nprompts: p.txt\noutput: unused\ndevice: cpu\ncontact_sheet: false\n"
    )
    columns = ["flops", "speedup", "ms", "psnr_db", "bits_last", "fid", "geneval"]
    table = {
        "model": "tiny",
        "models": {
            "tiny": {"config": "c.yaml", "columns": columns},
            "absent": {"config": "c.yaml", "set": ["model=nowhere"], "columns": columns},
        },
        "output": "out",
        "arms": {
            "StepVAR": [f"pruning={PRUNING}/stepvar_balanced.yaml"],
            "LD-Pruning": [f"pruning={PRUNING}/ldpruning.yaml"],
        },
        "published": "published.yaml",
    }
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(table, sort_keys=False))
    row = {
        "method": "Other",
        "model": "2B",
        "values": {"geneval": 0.5},
        "source": "arXiv:1, tab. 2",
    }
    (tmp_path / "published.yaml").write_text(yaml.safe_dump({"rows": [row]}))
    return tmp_path


def rows(name: str = "tiny") -> dict[str, dict]:
    record = json.loads(Path("out", name, "table.json").read_text())
    return {row["label"]: row["cells"] for row in record["rows"]}


def test_a_table_has_a_row_per_arm_and_says_why_a_cell_is_empty(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["table", "t.yaml"]) == 0
    shown = capsys.readouterr().out
    found = rows()
    assert list(found) == ["dense", "StepVAR", "LD-Pruning"]
    assert found["dense"]["speedup"]["value"] == 1
    assert found["dense"]["psnr_db"]["missing"] == "missing: no dense run to compare with"
    assert found["StepVAR"]["flops"]["value"] > 1
    assert found["StepVAR"]["psnr_db"]["n"] == 2
    assert found["LD-Pruning"]["flops"]["value"] > 1
    assert found["LD-Pruning"]["flops"]["n"] == 2
    assert found["StepVAR"]["fid"]["missing"].startswith("missing: files.inception (models/")
    assert found["StepVAR"]["geneval"]["missing"].startswith("missing: benchmarks.geneval (data/")
    assert "| StepVAR |" in shown
    assert "2 pictures per arm, of 2 prompts." in shown
    record = json.loads(Path("out/tiny/table.json").read_text())
    assert record["environment"]["dtype"] == "float32"
    assert record["environment"]["weights"] in Path("out/tiny/dense/run.jsonl").read_text()
    assert "missing: files.inception" in shown
    assert "| Other | 2B | – | 0.5 | arXiv:1, tab. 2 | no |" in shown
    tex = Path("out/tiny/table.tex").read_text()
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == 2
    assert r"$\uparrow$" in tex
    table = list(csv.DictReader(Path("out/tiny/table.csv").read_text().splitlines()))
    assert {line["row"] for line in table} == {*found, "Other (2B)"}
    assert {line["source"] for line in table} == {"ours", "arXiv:1, tab. 2"}


def test_a_table_is_resumed_without_drawing_again(work: Path) -> None:
    assert main(["table", "t.yaml", "images=1"]) == 0
    first = Path("out/tiny/stepvar/run.jsonl").read_text()
    assert main(["table", "t.yaml", "images=1"]) == 0
    assert Path("out/tiny/stepvar/run.jsonl").read_text() == first
    assert main(["table", "t.yaml", f"arms.random=[pruning={PRUNING}/random.yaml]"]) == 0
    assert Path("out/tiny/stepvar/run.jsonl").read_text().startswith(first)
    assert rows()["random"]["psnr_db"]["n"] == 2


def test_a_table_that_is_stopped_while_scoring_has_the_arms_scored_until_then(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[str] = []

    def stopped(arm: DrawnArm, dense: DrawnArm | None, scoring: Scoring) -> dict[str, Estimate]:
        if len(scored) == 2:
            raise KeyboardInterrupt
        scored.append(arm.label)
        return evaluate(arm, dense, scoring)

    monkeypatch.setattr(tables, "evaluate", stopped)
    assert main(["table", "t.yaml", "images=1"]) == 130
    assert list(rows()) == ["dense", "StepVAR"]
    record = json.loads(Path("out/tiny/table.json").read_text())
    assert record["notes"][-1] == "Not complete: 2 of 3 arms are scored."
    drawn = Path("out/tiny/ld-pruning/run.jsonl").read_text()
    monkeypatch.undo()
    monkeypatch.chdir(work)
    assert main(["table", "t.yaml", "images=1"]) == 0
    assert list(rows()) == ["dense", "StepVAR", "LD-Pruning"]
    assert Path("out/tiny/ld-pruning/run.jsonl").read_text() == drawn
    assert "Not complete" not in Path("out/tiny/table.md").read_text()


def test_a_grid_is_crossed_with_every_arm(work: Path) -> None:
    words = ["arms.LD-Pruning=null", "grid.pruning.scales.-1.keep_ratio=[0.5]"]
    grid = "grid={pruning.scales.*.keep_ratio: [1.0, 0.5]}"
    arms = f"arms={{S: ['pruning={PRUNING}/stepvar_balanced.yaml']}}"
    assert main(["table", "t.yaml", "images=1", arms, grid]) == 0
    found = rows()
    assert list(found) == ["dense", "S keep_ratio=1.0", "S keep_ratio=0.5"]
    assert found["S keep_ratio=1.0"]["psnr_db"]["value"] == 100
    assert found["S keep_ratio=0.5"]["psnr_db"]["value"] < 100
    assert main(["table", "t.yaml", *words]) == 2


def test_without_the_model_every_cell_says_so_and_published_values_stay(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["table", "t.yaml", "model=absent"]) == 0
    assert rows("absent")["StepVAR"]["ms"]["missing"] == "missing: model (nowhere)"
    needed = rows("absent")["StepVAR"]["fid"]["missing"]
    assert needed.startswith("missing: model (nowhere), files.inception (models/metrics/pt_")
    assert needed.endswith("files.real_images (data/real)")
    geneval = rows("absent")["dense"]["geneval"]["missing"]
    assert "benchmarks.geneval (data/geneval/" in geneval
    assert "files.detector (" in geneval
    assert "arXiv:1, tab. 2" in capsys.readouterr().out


def test_geneval_prompts_are_drawn_and_laid_out_for_the_scorer(work: Path) -> None:
    line = {"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a cat"}
    Path("g.jsonl").write_text(json.dumps(line) + "\n")
    arms = f"arms={{StepVAR: ['pruning={PRUNING}/stepvar_balanced.yaml']}}"
    assert main(["table", "t.yaml", "images=1", "benchmarks.geneval=g.jsonl", arms]) == 0
    assert rows()["StepVAR"]["geneval"]["missing"].startswith("missing: files.detector (")
    samples = sorted(Path("out/tiny/stepvar-geneval/geneval/00000/samples").iterdir())
    assert [p.name for p in samples] == [f"000{k}.png" for k in range(4)]


def test_on_a_gpu_every_arm_is_warmed_up_and_keeps_its_batch_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = "stepvar_patch.experiments.check.resolve_device"
    monkeypatch.setattr(where, lambda device, dtype: ("cuda", "bfloat16"))
    (tmp_path / "p.txt").write_text("a\nb\nc\n")
    write_model_directory(tmp_path / "model")
    paths = {"model": str(tmp_path / "model"), "prompts": str(tmp_path / "p.txt")}
    arms = [
        Arm(
            label=name,
            config=GenerateConfig(**paths, output=str(tmp_path / name), batch_size=size),
        )
        for name, size in (("dense", 2), ("alone", 1))
    ]
    gpu = FakePipeline(device=torch.device("cuda"))
    drawn = draw_arms(arms, None, RunProgress(talk), gpu.load)
    assert gpu.batches == [*(1, 2, 2), *(1, 1, 1), *(2, 1, 1), *(1, 1)]
    assert [len(arm.rows) for arm in drawn] == [3, 3]
    assert gpu.sizes == [*(2, 2, 2), *(1, 1, 1), *(2, 1, 1), *(2, 1)]
    again = FakePipeline(device=torch.device("cuda"))
    draw_arms(arms, None, RunProgress(talk), again.load)
    assert again.batches == []
    (tmp_path / "p.txt").write_text("a\nb\nz\n")
    with pytest.raises(UserError, match=r"p\.txt:3: id '00003' has another prompt than .*dense;"):
        draw_arms(arms, None, RunProgress(talk), again.load)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["model=embeded"], "model = 'embeded' is unknown; valid are tiny, absent"),
        (["arms={dense: []}"], "'dense' is always there"),
        (["models.tiny.columns=[psnr]"], "models.tiny.columns.0 = 'psnr' must be"),
        (["published=nowhere.yaml"], "published: nowhere.yaml does not exist"),
        (["arms={A b: [seed=1], a_b: [seed=1]}"], "two labels give the same folder"),
        (["arms={S: [pruning=nowhere.yaml]}"], "nowhere.yaml"),
    ],
)
def test_a_mistake_is_one_sentence(
    work: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["table", "t.yaml", *words]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_every_shipped_table_is_complete_and_fits_the_embedded_model(path: Path) -> None:
    table = load_config(TableConfig, path)
    given = yaml.safe_load(path.read_text())
    assert given.keys() == {field.name for field in fields(table)}
    assert given["files"].keys() == {field.name for field in fields(table.files)}
    assert given["benchmarks"].keys() == {field.name for field in fields(Benchmarks)}
    assert {"embedded", "infinity_2b", "infinity_8b"} == table.models.keys()
    load_published(table.published)
    cells = table_cells(table)
    assert len(cells) > 4
    for cell in cells:
        assert check(cell.config, PRESETS["embedded"]).images >= 500


@pytest.mark.parametrize("name", ["infinity_2b", "infinity_8b"])
def test_the_tables_expand_for_the_official_models_too(name: str) -> None:
    for path in TABLES:
        assert table_cells(load_config(TableConfig, path, [f"model={name}"]))


def test_a_table_may_hold_dense_alone(work: Path) -> None:
    spec = yaml.safe_load(Path("t.yaml").read_text()) | {"arms": {}, "published": None}
    Path("t.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    assert main(["table", "t.yaml", "images=1"]) == 0
    assert list(rows()) == ["dense"]
