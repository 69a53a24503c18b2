"""Input made to hurt: one sentence, at once, in little memory."""

import json
import subprocess
import sys
import time
from pathlib import Path

import fake_pipeline
import fuzz
import pytest
from fake_pipeline import FakePipeline, write_model_directory
from hypothesis import given, settings
from hypothesis import strategies as st
from resident import peak_mib, resident_mib, restart_peak

from infinity.errors import UserError
from infinity.io.rows import parse_row
from infinity.io.small_yaml import growth
from stepvar_patch.cli import main
from stepvar_patch.experiments.references import check_references

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
)
CHAIN = "".join(f"k{i}: '${{k{i + 1}}}${{k{i + 1}}}'\n" for i in range(40)) + "k40: x\n"


@pytest.mark.parametrize(
    "inputs", [4_000, pytest.param(1_000_000, marks=pytest.mark.slow, id="a million")]
)
def test_damaged_input_ends_in_a_sentence(tmp_path: Path, inputs: int) -> None:
    seed = int(time.time())
    command = [sys.executable, fuzz.__file__, "--inputs", str(inputs), "--seed", str(seed)]
    ended = subprocess.run([*command, "--keep", tmp_path], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert json.loads(ended.stdout)["inputs"] >= inputs


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (BOMB, "values after its aliases are followed"),
        (CHAIN, "characters when filled in"),
        ("a: &a [*a]", "inside its own anchor"),
        ("[" * 10_000, "levels deep"),
        ("a: " + "x" * (1 << 20), "larger than 1 MiB"),
        ("model: ${prompts}\nprompts: ${model}\noutput: o\n", "leads back to itself"),
        ("model: m\noutput: o\nprompts: ${oc.env:HOME}\n", "is no reference to a key"),
        ("prompts: p.txt\noutput: o\nmodel: ${${a}}\n", "not nested"),
        ("seed: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
        ("seed: " + "9" * 5000, "cannot read"),
    ],
)
def test_a_yaml_bomb_is_refused_at_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str,
    told: str,
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    write_model_directory(tmp_path / "m")
    (tmp_path / "p.txt").write_text("a")
    monkeypatch.chdir(tmp_path)
    begun = time.monotonic()
    assert main(["generate", str(path)], FakePipeline().load) == 2
    assert time.monotonic() - begun < 5
    err = capsys.readouterr().err
    assert told in err
    assert len(err.splitlines()) == 1


def test_the_same_in_an_override_and_in_a_run_folder(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bomb = "{" + BOMB.strip().replace("\n", ", ") + "}"
    for word in (f"pruning={bomb}", "seed=${seed}", "model=${model}${model}"):
        assert main(["generate", "c.yaml", word], FakePipeline().load) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    (work / "out").mkdir()
    (work / "out" / "config.yaml").write_text(BOMB)
    assert main(["generate", "c.yaml"], FakePipeline().load) == 2
    assert "config.yaml cannot be read" in capsys.readouterr().err


def test_ordinary_aliases_and_references_stay_allowed() -> None:
    assert growth("a: &x {b: 1}\nc: *x\nd: [*x, *x]\n") is None
    check_references({"a": "${b}/${c.0}", "b": "x", "c": ["y", "${.0}"], "d": "\\${e}"})


@given(st.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_text_is_measured_or_refused_as_yaml(text: str) -> None:
    import yaml

    try:
        growth(text)
    except yaml.YAMLError:
        return


@given(
    st.recursive(st.text() | st.integers(), lambda x: st.dictionaries(st.text(), x) | st.lists(x))
)
@settings(max_examples=200, deadline=None)
def test_any_tree_of_references_ends(tree: object) -> None:
    try:
        check_references({"a": tree, "b": "${a}"})
    except ValueError as error:
        assert str(error)  # noqa: PT017


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_any_line_is_a_row_or_nothing(line: bytes) -> None:
    assert parse_row(line + b"\n") is None


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "csv"])
def test_a_line_of_two_gigabytes_costs_nothing(tmp_path: Path, suffix: str) -> None:
    from infinity.io.prompts import read_prompts

    path = tmp_path / f"p.{suffix}"
    with path.open("wb") as file:
        file.truncate(2 << 30)
    restart_peak()
    before, begun = resident_mib(), time.monotonic()
    with pytest.raises(UserError, match=r":1: the line is longer than 65536 bytes"):
        list(read_prompts(path))
    assert time.monotonic() - begun < 1
    assert peak_mib() - before < 8


def test_a_manifest_line_of_two_gigabytes_is_skipped_in_little_memory(tmp_path: Path) -> None:
    from infinity.io.rows import manifest_rows

    path = tmp_path / "run.jsonl"
    with path.open("wb") as file:
        file.truncate(2 << 30)
    restart_peak()
    before = resident_mib()
    assert list(manifest_rows(path)) == [None]
    assert peak_mib() - before < 16


@pytest.mark.parametrize("rows", [20_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_prompts_stream_in_constant_memory(tmp_path: Path, rows: int) -> None:
    path = tmp_path / "p.jsonl"
    with path.open("w") as file:
        for i in range(rows):
            file.write(f'{{"id": "{i * 7919 % rows:07d}", "prompt": "a red apple {i}"}}\n')
    code = (
        "import sys; from pathlib import Path\n"
        "sys.path.insert(0, sys.argv[2]); from resident import peak_mib, resident_mib\n"
        "from infinity.io.prompts import read_prompts\n"
        "rows = read_prompts(Path(sys.argv[1])); next(rows); before = resident_mib()\n"
        "print(1 + sum(1 for _ in rows), peak_mib() - before)"
    )
    helpers = Path(fake_pipeline.__file__).parent
    command = [sys.executable, "-c", code, path, helpers]
    ended = subprocess.run(command, capture_output=True, check=True)
    count, grown_mib = ended.stdout.split()
    assert int(count) == rows
    assert float(grown_mib) < 16


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("transformer", "heads", 0),
        ("transformer", "depth", 10**9),
        ("transformer", "block_chunks", 0),
        ("transformer", "mlp_ratio", float("nan")),
        ("transformer", "width", -384),
        ("tokenizer", "patch_size", 0),
        ("tokenizer", "channels", 1 << 40),
        ("tokenizer", "channel_multipliers", [1] * 10**5),
    ],
)
def test_a_model_of_impossible_shape_is_refused(
    work: Path, capsys: pytest.CaptureFixture[str], part: str, field: str, value: object
) -> None:
    manifest = json.loads((work / "model" / "manifest.json").read_text())
    manifest["config"][part][field] = value
    (work / "model" / "manifest.json").write_text(json.dumps(manifest))
    assert main(["generate", "c.yaml"], FakePipeline().load) == 2
    err = capsys.readouterr().err
    assert "manifest.json" in err
    assert field in err
    assert len(err.splitlines()) == 1
