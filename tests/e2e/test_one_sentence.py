"""A mistake is one sentence and code 2, our own failure a traceback and code 1."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fake_pipeline import FakePipeline
from runs import stepvar

from stepvar_patch.cli import main


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
