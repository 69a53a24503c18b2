"""Pruning through the real command line on a tiny model: generate, doctor, ablate, show-masks."""

import csv
import json
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from tiny_model import CONFIG, REPOSITORY

from infinity.config import PRESETS
from infinity.io.images import read_png
from infinity.pipeline import InfinityPipeline
from stepvar_patch.cli import main
from stepvar_patch.experiments.ablate.schema import AblateConfig, expand
from stepvar_patch.experiments.check import check
from stepvar_patch.experiments.compare import draw
from stepvar_patch.experiments.loading import load_config
from stepvar_patch.experiments.masks.run import Watched
from stepvar_patch.experiments.plan import jobs
from stepvar_patch.experiments.pruning import resolve_pruning
from stepvar_patch.experiments.schema import GenerateConfig

POLICIES = sorted((REPOSITORY / "configs" / "pruning").glob("*.yaml"))
ABLATIONS = sorted((REPOSITORY / "configs" / "ablations").glob("*.yaml"))
BALANCED = f"pruning={REPOSITORY}/configs/pruning/stepvar_balanced.yaml"


@pytest.fixture
def work(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "p.txt").write_text("a <b>red</b> apple\na blue car\n")
    (tmp_path / "c.yaml").write_text(
        f"model: {model}\nprompts: p.txt\noutput: out\ndevice: cpu\ncontact_sheet: false\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def first(folder: Path) -> Path:
    return sorted(folder.glob("00001_*.png"))[0]


@pytest.mark.parametrize("path", POLICIES, ids=lambda path: path.stem)
def test_every_shipped_policy_is_complete_draws_and_is_recorded(work: Path, path: Path) -> None:
    config = load_config(GenerateConfig, Path("c.yaml"), [f"pruning={path}"])
    given = yaml.safe_load(path.read_text())
    assert given.keys() == {field.name for field in fields(config.pruning)}
    assert main(["generate", "c.yaml", f"pruning={path}"]) == 0
    recorded = read_png(first(work / "out"))[1].settings["pruning"]
    assert recorded["kind"] == given["kind"]
    assert recorded["scales"].keys() == given["scales"].keys()


def test_a_pruned_image_differs_from_the_dense_one_and_replays(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "c.yaml", "output=dense"]) == 0
    assert main(["generate", "c.yaml", BALANCED, "pruning.target_speedup=1.5"]) == 0
    dense, pruned = (read_png(first(work / name)) for name in ("dense", "out"))
    assert dense[0].tobytes() != pruned[0].tobytes()
    assert dense[1].settings["pruning"] is None
    assert pruned[1].settings["pruning"]["scales"]["-1"]["keep_ratio"] not in (0.5, 1)
    assert "target_speedup" not in pruned[1].settings["pruning"]
    assert main(["replay", str(first(work / "out"))]) == 0
    assert "identical pixels" in capsys.readouterr().out


def test_keeping_everything_is_the_dense_image(work: Path) -> None:
    assert main(["generate", "c.yaml", "output=dense"]) == 0
    assert main(["generate", "c.yaml", BALANCED, "pruning.scales.*.keep_ratio=1"]) == 0
    dense, pruned = (read_png(first(work / name))[0] for name in ("dense", "out"))
    assert dense.tobytes() == pruned.tobytes()


def test_a_run_is_not_resumed_under_another_policy(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "c.yaml", BALANCED]) == 0
    assert main(["generate", "c.yaml", BALANCED]) == 0
    assert main(["generate", "c.yaml", BALANCED, "pruning.scales.-1.keep_ratio=0.4"]) == 2
    assert "pruning was" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["pruning={kind: stepvr}"], ["pruning.kind = 'stepvr'", "did you mean 'stepvar'?"]),
        (["pruning={scales: {}}"], ["pruning.kind is required; valid are dense, stepvar"]),
        (["pruning=nowhere.yaml"], ["nowhere.yaml", "No such file"]),
        (
            [BALANCED, "pruning.structur_share=1", "pruning.scales.-1.keep_rato=0.4", "seed=-1"],
            ["3 mistakes", "did you mean 'structure_share'?", "did you mean 'keep_ratio'?", "seed"],
        ),
        (
            [BALANCED, "pruning.scales.-1.keep_ratio=0"],
            ["scales.-1.keep_ratio = 0 must be"],
        ),
        ([BALANCED, "pruning.restore=cached"], ["pruning.restore = 'cached'", "nearest_state"]),
        ([BALANCED, "pruning.scales.-9.keep_ratio=0.5"], ["scales.-9 matches no scale"]),
        ([BALANCED, "pruning.target_speedup=90"], ["target_speedup is 90", "allowed"]),
        (
            ["pruning={kind: stepvar}", "pruning.scales.*.run=true"],
            ["scales.* matches nothing"],
        ),
    ],
)
def test_mistakes_are_told_before_weights_are_read(
    work: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: list[str]
) -> None:
    def load(*args: object, **kwargs: object) -> None:
        raise AssertionError("weights were read")

    assert main(["generate", "c.yaml", *words], load) == 2
    err = capsys.readouterr().err
    assert [text for text in told if text not in err] == [], err
    assert "Traceback" not in err


def test_doctor_tells_the_plan_without_weights(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["doctor", "c.yaml", BALANCED, "model=nowhere", "--shape", "infinity-2b"]
    assert main([*words, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert [line["kept"] for line in plan["scales"]][-4:] == [615, 800, 1152, 2048]
    assert plan["scales"][-1]["dense_flops"] > plan["scales"][-1]["flops"]
    assert plan["speedup"] == pytest.approx(plan["dense_flops"] / plan["flops"])
    assert main([*words, "pruning.target_speedup=2.5"]) == 0
    assert "2.50× fewer" in capsys.readouterr().out
    assert main([*words, "aspect_ratio=0.5", f"pruning={POLICIES[0]}"]) == 0


def test_doctor_tells_every_problem_at_once(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["prompts=no.txt", "guidance_scale=[1, 2]", BALANCED, "pruning.scales.-9.run=false"]
    assert main(["doctor", "c.yaml", *words]) == 2
    err = capsys.readouterr().err
    assert "3 mistakes" in err
    assert [text for text in ("no.txt", "guidance_scale", "scales.-9") if text not in err] == []
    rules = ["pruning.scales.-9.run=false", "pruning.scales.12.run=false"]
    words = [BALANCED, *rules, "pruning.layers=[0.5, 0.2]", "pruning.scored_rows=own"]
    assert main(["doctor", "c.yaml", *words]) == 2
    told = capsys.readouterr().err.splitlines()
    starts = ("layers is [0.5", "scored_rows is own", "scales.-9 matches", "scales.12 matches")
    assert told[0] == "stepvar: 4 mistakes:"
    assert all(line.startswith(f"  pruning: {s}") for line, s in zip(told[1:], starts, strict=True))


def ablation(work: Path, text: str) -> None:
    (work / "a.yaml").write_text(f"config: c.yaml\noutput: ab\nimages: 2\n{text}")


def test_ablate_writes_one_row_per_cell_and_resumes(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ablation(
        work,
        f"set: ['{BALANCED}']\n"
        "cells:\n  all_kept: ['pruning.scales.*.keep_ratio=1']\n  half: []\n"
        "  skip|last: ['pruning={kind: dense, scales: {\"-1\": {run: false}}}']\n"
        "  dense: ['pruning=null']\n",
    )
    assert main(["ablate", "a.yaml", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["made"] == 8
    cells = {cell["cell"]: cell for cell in result["cells"]}
    assert list(cells) == ["all_kept", "half", "skip|last", "dense"]
    for name in ("all_kept", "dense"):
        assert (cells[name]["psnr_db"], cells[name]["flop_ratio"]) == (100, 1)
        assert set(cells[name]["bit_agreement"]) == {1.0}
        assert cells[name]["first_divergence"] is None
    half, skip = cells["half"], cells["skip|last"]
    assert half["first_divergence"] == 3
    assert half["bit_agreement"][:3] == [1, 1, 1]
    assert 0.2 < half["bit_agreement"][-1] < 1
    assert half["psnr_db"] < 60
    assert half["ssim"] < 1
    assert main(["doctor", "c.yaml", BALANCED, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert 1 / half["flop_ratio"] == pytest.approx(plan["speedup"], rel=0.05)
    assert plan["speedup"] > 1.5
    assert half["time_ratio"] > 0
    assert (skip["bit_agreement"][-1], skip["first_divergence"]) == (None, 6)
    with (work / "ab" / "table.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["cell"] for row in table] == list(cells)
    assert float(table[1]["bit_agreement_6"]) == half["bit_agreement"][6]
    assert r"| skip\|last |" in (work / "ab" / "table.md").read_text()
    assert r"all\_kept & " in (work / "ab" / "table.tex").read_text()
    assert json.loads((work / "ab" / "table.json").read_text())["command"] == (
        "stepvar ablate a.yaml"
    )

    rows = (work / "ab" / "rows.jsonl").read_bytes()
    assert main(["ablate", "a.yaml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["made"] == 0
    (work / "ab" / "rows.jsonl").write_bytes(rows[:-20])
    assert main(["ablate", "a.yaml", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["made"] == 1
    assert main(["ablate", "a.yaml", "flop_images=0", "--json"]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["made"] == 4
    planned = [cell["flop_ratio"] for cell in again["cells"]]
    assert planned == pytest.approx([cell["flop_ratio"] for cell in cells.values()], rel=0.05)
    assert again["cells"][1]["psnr_db"] == pytest.approx(half["psnr_db"], abs=0.01)


def test_ablate_crosses_cells_with_a_grid_and_draws_plots(work: Path) -> None:
    pytest.importorskip("matplotlib")
    ablation(
        work,
        f"set: ['{BALANCED}']\ncells: {{a: [], b: [pruning.restore=code_copy]}}\n"
        "grid: {pruning.scales.*.keep_ratio: [0.9, 0.5], guidance_scale: [2, 3.5]}\n",
    )
    assert main(["ablate", "a.yaml", "images=1"]) == 0
    table = json.loads((work / "ab" / "table.json").read_text())["cells"]
    assert [cell["cell"] for cell in table[:3]] == [
        "a keep_ratio=0.9, guidance_scale=2",
        "a keep_ratio=0.9, guidance_scale=3.5",
        "a keep_ratio=0.5, guidance_scale=2",
    ]
    assert len(table) == 8
    assert table[0]["flop_ratio"] > table[2]["flop_ratio"]
    assert table[0]["time_ratio"] is None
    assert (work / "ab" / "plot.png").read_bytes()[:4] == b"\x89PNG"
    assert b"<svg" in (work / "ab" / "plot.svg").read_bytes()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "an ablation needs cells, a grid, or both"),
        ("cells: {x: [pruning.kind=stepvar], y: [seeds=1]}", "cell 'y'"),
        ("cells: {x: []}\nimage: 3", "did you mean 'images'?"),
        ("grid: {seed: [1, 1]}", "two cells have the label 'seed=1'"),
        ("cells: {x: ['pruning={kind: stepvar, scales: {\"-8\": {}}}']}", "scales.-8"),
    ],
)
def test_a_wrong_ablation_is_told_before_anything_is_drawn(
    work: Path, capsys: pytest.CaptureFixture[str], text: str, told: str
) -> None:
    ablation(work, text)
    assert main(["ablate", "a.yaml"]) == 2
    assert told in capsys.readouterr().err
    assert not (work / "ab").exists()


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
def test_every_shipped_ablation_is_complete_and_its_cells_are_valid(path: Path) -> None:
    config = load_config(AblateConfig, path)
    assert yaml.safe_load(path.read_text()).keys() == {f.name for f in fields(AblateConfig)}
    cells = expand(config)
    assert len(cells) >= 5
    for cell in cells:
        check(cell.config, PRESETS["embedded"])


@pytest.mark.parametrize(
    "kind", ["stepvar_balanced", "best_balanced", "fastvar", "tome", "ldpruning"]
)
def test_show_masks_writes_a_strip_and_a_page_without_server(
    work: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    pruning = f"pruning={REPOSITORY}/configs/pruning/{kind}.yaml"
    assert main(["show-masks", "c.yaml", pruning, "--json"]) == 0
    files = json.loads(capsys.readouterr().out)
    page = Path(files["page"]).read_text()
    assert page.count("<section") == len(load_schedule())
    assert "a &lt;b&gt;red&lt;/b&gt; apple" in page
    assert "<b>red" not in page
    assert 'type="range"' in page
    assert "://" not in page
    assert Path(files["strip"]).read_bytes()[:4] == b"\x89PNG"
    assert ("scale 6: 16 × 16, not run" in page) == (kind == "fastvar")
    assert ("scale 6: 16 × 16, 128 of 256 tokens" in page) == (kind == "stepvar_balanced")


def load_schedule() -> tuple[tuple[int, int], ...]:
    from infinity.picture import picture_schedule

    return picture_schedule(CONFIG).grids


@pytest.mark.parametrize("path", POLICIES, ids=lambda path: path.stem)
def test_watching_a_policy_changes_no_bit(model: Path, work: Path, path: Path) -> None:
    if path.stem == "oracle":
        pytest.skip("show-masks refuses the oracle")
    config = load_config(GenerateConfig, Path("c.yaml"), [f"pruning={path}"])
    policy = resolve_pruning(config, CONFIG)
    pipeline = InfinityPipeline.from_pretrained(model, device="cpu")
    job = next(jobs(config))
    watched = Watched(policy)
    plain, seen = (draw(pipeline, job, {}, p) for p in (policy, watched))
    assert plain.image.equal(seen.image)
    for si, scale in watched.scales.items():
        assert scale.run == (si in plain.codes)
        assert 0 <= scale.kept.min() <= scale.kept.max() <= 1


def test_show_masks_needs_a_policy(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show-masks", "c.yaml"]) == 2
    assert "pruning is null" in capsys.readouterr().err


def test_show_masks_of_a_first_scale_that_is_left_out(work: Path) -> None:
    pruning = "pruning={kind: dense, scales: {'0': {run: false}}}"
    assert main(["show-masks", "c.yaml", pruning]) == 0


def test_signs_of_mathematics_in_a_label_are_signs(work: Path) -> None:
    pytest.importorskip("matplotlib")
    ablation(work, f"set: ['{BALANCED}']\ncells: {{'a $^$ b': [], c: [seed=1]}}\n")
    assert main(["ablate", "a.yaml", "images=1"]) == 0
    assert "a $^$ b" in (work / "ab" / "plot.svg").read_text()


def test_a_rule_for_another_resolution_than_the_models_own_fits_its_pictures(work: Path) -> None:
    words = ["resolution=0.25M", "pruning.kind=dense", "pruning.scales.8={run: false}"]
    assert main(["generate", "c.yaml", *words, "images_per_prompt=1"]) == 0
    assert len(list((work / "out").glob("*.png"))) == 2
