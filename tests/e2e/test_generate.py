"""The generate verb through the real command line, without weights."""

import json
import os
import random
from pathlib import Path

import pytest
import torch
from fake_pipeline import FakePipeline
from PIL import Image
from runs import ROWS, files, pixels, rows, stepvar

from infinity.io.images import read_png
from infinity.io.prompts import derived_seed


def test_a_run_leaves_named_images_manifest_config_and_sheet(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stepvar("generate", "c.yaml", "--json") == 0
    names = [f"{ROWS[0]['id']}_7", *(f"{i}_{derived_seed(0, i)}" for i in ("car", "00003"))]
    found = rows(work / "out")
    assert [Path(row["file"]).stem for row in found][:3] == names
    assert [row["extra"] for row in found][:2] == [{"kind": "fruit"}, {}]
    assert {file for file in os.listdir(work / "out") if file.endswith(".png")} == {
        "contact_sheet.png",
        *(row["file"] for row in found),
    }
    config = (work / "out" / "config.yaml").read_text()
    assert "seed: 0\n" in config
    assert "dtype: float32\n" in config
    out, err = capsys.readouterr()
    assert json.loads(out)["images"] == 5
    assert "5/5 images" in err
    provenance = read_png(work / "out" / "apple_7.png")[1]
    assert (provenance.prompt, provenance.seed) == ("a red apple", 7)
    assert provenance.extra == {"kind": "fruit"}
    guidance_scale = FakePipeline.config.sampling.guidance_scale
    assert provenance.settings["guidance_scale"] == list(guidance_scale)


def test_batches_order_and_neighbours_change_no_image(work: Path) -> None:
    assert stepvar("generate", "c.yaml") == 0
    shuffled = [{**row, "id": row.get("id", f"{i:05d}")} for i, row in enumerate(ROWS, start=1)]
    random.Random(0).shuffle(shuffled)
    (work / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in shuffled[:4]))
    assert stepvar("generate", "c.yaml", "output=other", "prompts=q.jsonl", "batch_size=3") == 0
    assert len(rows(work / "other")) == 4
    for row in rows(work / "other"):
        assert pixels(work / "other" / row["file"]) == pixels(work / "out" / row["file"])


def test_a_finished_run_loads_no_weights_and_changes_nothing(work: Path) -> None:
    assert stepvar("generate", "c.yaml") == 0
    before, manifest = files(work / "out"), (work / "out" / "run.jsonl").read_bytes()
    again = FakePipeline()
    assert stepvar("generate", "c.yaml", pipeline=again) == 0
    assert again.loads == []
    assert files(work / "out") == before
    assert (work / "out" / "run.jsonl").read_bytes() == manifest


def test_only_what_is_unfinished_is_drawn(work: Path) -> None:
    assert stepvar("generate", "c.yaml") == 0
    before = files(work / "out")
    (work / "out" / "apple_7.png").write_bytes(before["apple_7.png"][:100])
    manifest = (work / "out" / "run.jsonl").read_bytes()
    (work / "out" / "run.jsonl").write_bytes(manifest[:-30])
    again = FakePipeline()
    assert stepvar("generate", "c.yaml", pipeline=again) == 0
    assert again.batches == [1, 1]
    assert files(work / "out") == before
    assert sorted(row["id"] for row in rows(work / "out")) == sorted(
        {row.get("id", f"{i:05d}") for i, row in enumerate(ROWS, start=1)}
    )


def test_a_gpu_draws_unfinished_images_in_their_old_batch(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = "stepvar_patch.experiments.check.resolve_device"
    monkeypatch.setattr(where, lambda device, dtype: ("cuda", "bfloat16"))
    gpu = FakePipeline(device=torch.device("cuda"))
    assert stepvar("generate", "c.yaml", pipeline=gpu) == 0
    assert (gpu.batches, gpu.max_batch_size) == ([2, 2, 1], 2)
    before = files(work / "out")
    (work / "out" / "apple_7.png").unlink()
    assert stepvar("generate", "c.yaml", pipeline=gpu) == 0
    assert gpu.batches == [2, 2, 1, 2]
    assert files(work / "out") == before
    assert len(rows(work / "out")) == len(ROWS)
    assert stepvar("generate", "c.yaml", "batch_size=4", pipeline=gpu) == 2


def test_more_images_per_prompt_extend_a_run(work: Path) -> None:
    assert stepvar("generate", "c.yaml") == 0
    again = FakePipeline()
    assert stepvar("generate", "c.yaml", "images_per_prompt=2", pipeline=again) == 0
    assert sum(again.batches) == 5
    assert (work / "out" / "apple_8.png").exists()


def test_an_id_that_comes_again_with_another_prompt_is_refused(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stepvar("generate", "c.yaml") == 0
    changed = [{**ROWS[0], "prompt": "a green apple"}, *ROWS[1:]]
    (work / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in changed))
    capsys.readouterr()
    assert stepvar("generate", "c.yaml", "prompts=q.jsonl") == 2
    told = capsys.readouterr().err
    assert "q.jsonl:1: id 'apple' has another prompt than its finished image in out;" in told


def test_previews_show_every_scale(work: Path) -> None:
    assert stepvar("generate", "c.yaml", "preview=true") == 0
    previews = sorted((work / "out").glob("*.preview.png"))
    assert len(previews) == len(ROWS)
    with Image.open(previews[0]) as image:
        assert image.size == (3 * 260 + 4, 264)
    contents = {pixels(preview) for preview in previews}
    assert len(contents) == len(ROWS)


def test_lost_and_damaged_strips_and_sheets_are_made_again(work: Path) -> None:
    assert stepvar("generate", "c.yaml", "--preview") == 0
    before, manifest = files(work / "out"), rows(work / "out")
    strips = sorted((work / "out").glob("*.preview.png"))
    strips[0].unlink()
    strips[1].write_bytes(strips[1].read_bytes()[:-9])
    (work / "out" / "contact_sheet.png").unlink()
    again = FakePipeline()
    assert stepvar("generate", "c.yaml", "--preview", pipeline=again) == 0
    assert again.batches == [1, 1]
    assert files(work / "out") == before
    assert rows(work / "out") == manifest


def test_a_strip_and_a_sheet_are_no_pictures(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stepvar("generate", "c.yaml", "--preview") == 0
    capsys.readouterr()
    for verb, name, shown in (
        ("show", "apple_7.preview.png", "the scales of apple_7.png"),
        ("replay", "contact_sheet.png", "thumbnails of the pictures beside it"),
    ):
        assert stepvar(verb, f"out/{name}") == 2
        told = f"stepvar: out/{name} shows {shown} and is no picture of its own\n"
        assert capsys.readouterr().err == told
