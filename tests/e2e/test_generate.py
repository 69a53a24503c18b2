"""The generate, show and replay verbs through the real command line, without weights."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fake_pipeline import FakePipeline
from PIL import Image
from runs import ROWS, files, pixels, rows, stepvar

from infinity.io.images import read_png, write_png
from infinity.io.prompts import derived_seed
from stepvar_patch.cli import main


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


def test_show_and_replay(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stepvar("generate", "c.yaml", "guidance_scale=[1,2,3,4,5,6,7,8,9,10]") == 0
    name = f"out/car_{derived_seed(0, 'car')}.png"
    capsys.readouterr()
    assert stepvar("show", name) == 0
    assert "prompt: a blue car\n" in capsys.readouterr().out
    assert stepvar("show", name, "--json") == 0
    assert json.loads(capsys.readouterr().out)["negative_prompt"] == "wheels"
    assert stepvar("replay", name, "--output", "new/again.png") == 0
    assert "identical pixels" in capsys.readouterr().out
    assert (work / "new" / "again.png").read_bytes() == (work / name).read_bytes()


@pytest.mark.parametrize(
    ("flag", "value", "told"),
    [
        ("--device", "cuda:x", "device = 'cuda:x' must be cpu, cuda or cuda:N"),
        ("--output", "/proc/x.png", "--output: cannot write into /proc: /proc takes no files"),
        ("--model", "none", "model: 'none' is neither a file nor a folder"),
        ("--output", "out", "--output: out is a folder; give the name of the new image"),
    ],
)
def test_replay_names_a_wrong_word_before_it_draws(
    work: Path, capsys: pytest.CaptureFixture[str], flag: str, value: str, told: str
) -> None:
    (work / "p.jsonl").write_text('{"id": "apple", "prompt": "a red apple", "seed": 7}')
    assert stepvar("generate", "c.yaml") == 0
    capsys.readouterr()
    pipeline = FakePipeline()
    assert stepvar("replay", "out/apple_7.png", flag, value, pipeline=pipeline) == 2
    assert capsys.readouterr().err.startswith(f"stepvar: {told}")
    assert pipeline.loads == []


def test_replay_names_all_wrong_words_at_once(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stepvar("generate", "c.yaml") == 0
    capsys.readouterr()
    words = ["--device", "cuda:77", "--output", "/proc/x.png", "--model", "none"]
    assert stepvar("replay", "out/apple_7.png", *words, "--text-encoder", "nowhere") == 2
    first, *rest = capsys.readouterr().err.splitlines()
    assert first == "stepvar: 4 mistakes:"
    assert [line.split()[0] for line in rest] == ["device", "model:", "text_encoder:", "--output:"]


def test_replay_tells_a_difference(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stepvar("generate", "c.yaml") == 0
    image, provenance = read_png(work / "out" / "apple_7.png")
    image.putpixel((0, 0), tuple(255 - value for value in image.getpixel((0, 0))))
    write_png(work / "changed.png", image, provenance)
    assert stepvar("replay", "changed.png", "--json") == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["differing_pixels"] == 1


def test_doctor_checks_a_config(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stepvar("doctor", "c.yaml", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["config"] == "c.yaml: valid, 5 images"
    assert report["torch"]
    assert report["attention sdpa"] == "usable"
    assert stepvar("doctor", "c.yaml", "seed=-1") == 2


def blocked(work: Path) -> None:
    (work / "out").write_text("a file")


def other_weights(work: Path) -> None:
    stepvar("generate", "c.yaml")
    manifest = json.loads((work / "model" / "manifest.json").read_text())
    manifest["config"]["sampling"]["top_k"] = 1
    (work / "model" / "manifest.json").write_text(json.dumps(manifest))


def other_prompt(work: Path) -> None:
    stepvar("generate", "c.yaml")
    (work / "p.jsonl").write_text('{"id": "apple", "prompt": "a green apple", "seed": 7}\n')


def no_manifest(work: Path) -> None:
    (work / "model" / "manifest.json").unlink()


def half_manifest(work: Path) -> None:
    (work / "model" / "manifest.json").write_text('{"format_version": 1')


def keep(work: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("arrange", "words", "told"),
    [
        (keep, ["prompts=none.txt"], "prompts: none.txt does not exist"),
        (lambda w: (w / "e.txt").write_text("\n"), ["prompts=e.txt"], "holds no prompt"),
        (lambda w: (w / "e.txt").write_bytes(b"a\n\xff"), ["prompts=e.txt"], "e.txt:2: byte 1 is"),
        (
            lambda w: (w / "e.jsonl").write_text('{"prompt": "a", "id": "x"}\n' * 2),
            ["prompts=e.jsonl"],
            "e.jsonl:2: id 'x' is already used by e.jsonl:1",
        ),
        (
            lambda w: (w / "e.csv").write_text("id,prompt\n../../x,a\n"),
            ["prompts=e.csv"],
            "e.csv:2: id '../../x' contains /",
        ),
        (keep, ["temprature=1"], "'temprature=1': temprature = 1 is an unknown key; did you mean"),
        (keep, ["top_p=2"], "'top_p=2': top_p = 2 must be less than or equal to 1"),
        (keep, ["guidance_scale=[1,2]"], "guidance_scale"),
        (keep, ["guidance_layers=[-99]"], "guidance_layers"),
        (keep, ["model=none"], "model: none is not a folder"),
        (no_manifest, [], "manifest.json"),
        (half_manifest, [], "manifest.json: not readable"),
        (blocked, [], "output: out is a file"),
        (other_weights, [], "model: model holds other weights"),
        (other_prompt, [], "p.jsonl:1: id 'apple' has another prompt"),
        (lambda w: stepvar("generate", "c.yaml"), ["top_k=1"], "top_k was null, now 1"),
        (keep, ["device=cuda:77"], "device = 'cuda:77' is not available"),
    ],
)
def test_each_mistake_is_one_sentence_and_code_2(
    work: Path, capsys: pytest.CaptureFixture[str], arrange, words: list[str], told: str
) -> None:
    arrange(work)
    capsys.readouterr()
    pipeline = FakePipeline()
    assert stepvar("generate", "c.yaml", *words, pipeline=pipeline) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.startswith("stepvar: ")
    assert len(err.splitlines()) == 1
    assert pipeline.loads == []


def test_a_missing_config_or_image_is_code_2(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stepvar("generate", "none.yaml") == 2
    assert stepvar("show", "none.png") == 2
    assert stepvar("replay", "c.yaml") == 2
    assert stepvar("doctor", "c.yaml", "--card-gib", "nan") == 2
    assert stepvar("generate") == 2
    assert stepvar("convert", "none.pth", "none.pth", "--output", "x") == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["generate"], "Missing argument 'config'; see 'stepvar generate --help'"),
        (["generate", "c.yaml", "--prewiev"], "No such option: --prewiev"),
        (["generat", "\x1b[2J"], "No such command 'generat'"),
        (["train"], "Missing command; see 'stepvar train --help'"),
        (["doctor", "--card-gib", "much"], "Invalid value for '--card-gib'"),
        (["doctor", "--card-gib", "11"], "--shape and --card-gib need a config"),
    ],
)
def test_words_that_fit_no_verb_are_one_sentence(
    work: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert stepvar(*words) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"stepvar: {told}")
    assert len(err.splitlines()) == 1
    assert "\x1b" not in err


def test_doctor_tells_all_of_its_own_mistakes(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stepvar("doctor", "c.yaml", "--shape", "infinity-3b", "--card-gib", "nan") == 2
    err = capsys.readouterr().err
    assert "--shape infinity-3b is unknown; allowed: infinity-125m" in err
    assert "--card-gib nan must be above 0" in err


def test_our_own_failure_is_code_1_with_a_traceback(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    assert main(["generate", "c.yaml"], broken) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_help_is_quick_and_needs_no_torch() -> None:
    code = (
        "import sys; from stepvar_patch.cli import main; code = main(['--help']);"
        "sys.exit(code or 'torch' in sys.modules or 'transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
