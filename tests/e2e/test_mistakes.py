"""All mistakes of a run are told together, before anything is created or any weight is read."""

import json
import os
from pathlib import Path

import pytest
from fake_pipeline import FakePipeline
from runs import stepvar


def told(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """The sentences of a run that must be refused."""
    capsys.readouterr()
    pipeline = FakePipeline()
    before = sorted(Path().rglob("*"))
    assert stepvar("generate", "c.yaml", *words, pipeline=pipeline) == 2
    assert sorted(Path().rglob("*")) == before
    assert pipeline.loads == []
    first, *rest = capsys.readouterr().err.removesuffix("\n").split("\n")
    if not rest:
        return [first.removeprefix("stepvar: ")]
    assert first == f"stepvar: {len(rest)} mistakes:"
    assert all(line.startswith("  ") for line in rest)
    return [line.strip() for line in rest]


def test_config_policy_prompts_model_encoder_and_folders_at_once(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (work / "half.yaml").write_text("kind: stepvar\nscope: words\n")
    (work / "p.jsonl").write_text('{"prompt": "a", "seed": -1}\n{"prompt": "b", "id": "../b"}\n')
    (work / "file").write_text("")
    found = told(
        capsys,
        *("seed=-1", "pruning=half.yaml", "model=none", "text_encoder=nowhere"),
        *("output=/proc/x", "text_cache=file/x", "guidence_scale=3"),
    )
    for sentence in (
        "argument 'seed=-1': seed = -1 must be greater than or equal to 0",
        "half.yaml: pruning.scope = 'words' must be",
        "argument 'guidence_scale=3': guidence_scale = 3 is an unknown key",
        "p.jsonl:1: 'seed' must be a whole number",
        "p.jsonl:2: id '../b' contains /",
        "model: none is not a folder",
        "text_encoder: nowhere is not a folder",
        "output: cannot write into /proc/x: /proc takes no files",
        "text_cache: file is a file; give a folder",
    ):
        assert [one for one in found if one.startswith(sentence)], sentence
    assert len([one for one in found if "half.yaml" not in one]) == 8


def test_a_missing_policy_file_hides_nothing(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = told(
        capsys, "pruning=none.yaml", "pruning.scales.-1.keep_ratio=2", "top_p=2", "prompts=no.txt"
    )
    assert found == [
        "pruning: cannot read none.yaml (No such file or directory)",
        "argument 'top_p=2': top_p = 2 must be less than or equal to 1",
        "prompts: no.txt does not exist or is neither a file nor a folder",
    ]


def test_what_rests_on_a_wrong_value_is_not_told(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(capsys, "model=", "text_encoder=3", "tokenizer=", "height=64") == [
        "argument 'model=': model = '' must not be empty",
        "argument 'tokenizer=': tokenizer = '' must not be empty",
        "c.yaml: height and width must be given together",
        "text_encoder: 3 is not a folder; give the text encoder's own folder",
    ]
    assert told(capsys, "output=${nothing}", "prompts=no.txt", "model=no") == [
        "c.yaml: output: Interpolation key 'nothing' not found",
        "prompts: no.txt does not exist or is neither a file nor a folder",
        "model: no is not a folder; give a model directory, or an official transformer with its "
        "tokenizer=FILE",
    ]


def test_every_line_of_a_prompt_file_and_every_file_of_a_model(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["{", '{"prompt": "a", "prompt": "b"}', '{"prompt": "", "id": ".", "seed": 1.5}']
    (work / "p.jsonl").write_text("\n".join(lines + [json.dumps({"text": "x"})] * 30))
    manifest = json.loads((work / "model" / "manifest.json").read_text())
    entry = {"bytes": 3, "sha256": "0", "component": "transformer"}
    manifest["files"] |= {"a.safetensors": entry, "b.safetensors": entry}
    (work / "model" / "manifest.json").write_text(json.dumps(manifest))
    (work / "model" / "b.safetensors").write_text("x")
    found = told(capsys)
    assert found[0].startswith("p.jsonl:1: not a JSON object")
    assert found[1] == "p.jsonl:2: not a JSON object (the key 'prompt' is given twice)"
    assert [one.partition(" ")[2][:4] for one in found[2:5]] == ["'pro", "'see", "id '"]
    assert found[20] == "prompts: p.jsonl has 15 more mistakes like these"
    assert found[21:] == [
        "model/a.safetensors: missing, though manifest.json lists it",
        "model/b.safetensors: has 1 bytes instead of 3; fetch it again",
    ]


def test_seeds_without_room_for_further_images(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = 2**53 - 1
    rows = [{"prompt": "a", "seed": last}, {"prompt": "b", "seed": last - 2}, {"prompt": "c"}]
    (work / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert told(capsys, "images_per_prompt=3", "top_p=2")[1:] == [
        f"p.jsonl:1: 'seed' {last} is too large for 3 images with consecutive seeds; "
        "the last may be 2^53-1"
    ]
    assert stepvar("generate", "c.yaml") == 0


def test_a_conflict_with_an_earlier_run_hides_nothing(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stepvar("generate", "c.yaml") == 0
    found = told(capsys, "prompts=none.txt", "temperature=2", "top_p=2", "batch_size=3")
    assert found == [
        "argument 'top_p=2': top_p = 2 must be less than or equal to 1",
        "prompts: none.txt does not exist or is neither a file nor a folder",
        "output: out holds a run with other settings (temperature was null, now 2.0); "
        "choose another folder or the same settings",
    ]
    assert stepvar("doctor", "c.yaml", "temperature=2") == 0


def test_a_model_without_text_encoder(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((work / "model" / "manifest.json").read_text())
    (work / "model" / "manifest.json").write_text(json.dumps({**manifest, "files": {}}))
    (found,) = told(capsys)
    assert found.startswith("model holds no text encoder; give text_encoder=FOLDER")


def test_links_and_files_in_the_way_of_folders(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.symlink("nowhere", "link")
    (work / "file").write_text("")
    assert told(capsys, "output=link", "text_cache=file") == [
        "output: link is a link that leads nowhere; give a folder",
        "text_cache: file is a file; give a folder",
    ]


@pytest.mark.parametrize("name", ["model", "tokenizer", "text_encoder", "prompts", "output"])
def test_names_that_no_file_system_takes(
    work: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    with (work / "c.yaml").open("a") as file:
        file.write('\ntext_cache: "a\\0b"\n')
    found = told(capsys, f"{name}={'x' * 256}", "seed=-1")
    assert [one.rpartition("'")[2][:36] for one in found if "takes" in one] == [
        " has a part that no file system take"
    ] * 2
    assert len(found) == 3


@pytest.mark.parametrize("verb", ["show", "replay", "generate", "report", "convert", "ablate"])
def test_the_same_of_files_that_a_verb_is_given(
    work: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    words = ["x.pth", "--output", "z"] if verb == "convert" else []
    assert stepvar(verb, "x" * 256, *words) == 2
    err = capsys.readouterr().err
    assert "ile name too long" in err
    assert len(err.splitlines()) == 1


def test_settings_that_the_model_cannot_take(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("guidance_scale=[1,2]", "temperature=[1]", "guidance_layers=[-99]")
    found = told(capsys, *words, "height=64", "width=64")
    assert [one.split(" ")[0] for one in found] == [
        *("height", "guidance_scale", "temperature", "guidance_layers")
    ]


def test_converting_tells_all_before_anything_is_written(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(Path().rglob("*"))
    words = ["convert", "no.pth", "model", "--output", "/proc/x", "--text-encoder", "model"]
    assert stepvar(*words) == 2
    assert capsys.readouterr().err.splitlines() == [
        "stepvar: 4 mistakes:",
        "  output: cannot write into /proc: /proc takes no files",
        "  model: text encoder folder must hold config.json and .safetensors",
        "  no.pth: not a readable checkpoint ([Errno 2] No such file or directory: 'no.pth')",
        "  model: is a folder; give the tokenizer's own file",
    ]
    assert sorted(Path().rglob("*")) == before
