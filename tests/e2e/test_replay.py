"""The show, replay and doctor verbs through the real command line, without weights."""

import json
from pathlib import Path

import pytest
from fake_pipeline import FakePipeline
from runs import stepvar

from infinity.io.images import read_png, write_png
from infinity.io.prompts import derived_seed


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


def test_doctor_tells_all_of_its_own_mistakes(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stepvar("doctor", "c.yaml", "--shape", "infinity-3b", "--card-gib", "nan") == 2
    err = capsys.readouterr().err
    assert "--shape infinity-3b is unknown; allowed: infinity-125m" in err
    assert "--card-gib nan must be above 0" in err
