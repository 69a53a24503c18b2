"""Config files: replaced values, and all mistakes told at once with their place."""

from dataclasses import fields
from pathlib import Path

import pytest

from infinity.errors import UserError
from stepvar_patch.experiments.loading import load_config
from stepvar_patch.experiments.schema import GenerateConfig

CONFIGS = Path(__file__).parents[2] / "configs"
GENERATE = ["generate", "infinity_125m", "infinity_2b", "infinity_8b", "infinity_8b_512"]


def load(folder: Path, text: str, *overrides: str) -> GenerateConfig:
    path = folder / "c.yaml"
    path.write_text(f"model: m\nprompts: p.txt\noutput: o\n{text}")
    return load_config(GenerateConfig, path, overrides)


@pytest.mark.parametrize("name", GENERATE)
def test_every_shipped_config_is_valid_and_complete(name: str) -> None:
    path = CONFIGS / f"{name}.yaml"
    config = load_config(GenerateConfig, path)
    assert Path(config.prompts).resolve() == CONFIGS / "prompts" / "demo.txt"
    given = {line.partition(":")[0] for line in path.read_text().splitlines() if line[:1].isalpha()}
    assert given == {field.name for field in fields(GenerateConfig)}


def test_the_official_settings_are_the_published_ones() -> None:
    found = {name: load_config(GenerateConfig, CONFIGS / f"{name}.yaml") for name in GENERATE[1:]}
    assert {name: (c.guidance_scale, c.temperature) for name, c in found.items()} == {
        "infinity_125m": (4.0, 0.5),
        "infinity_2b": (3.0, 0.5),
        "infinity_8b": (3.0, 1.0),
        "infinity_8b_512": (3.0, 1.0),
    }
    assert {(c.top_k, c.top_p, c.guidance_layers) for c in found.values()} == {(900, 0.97, (0,))}


def test_an_override_replaces_and_never_merges(tmp_path: Path) -> None:
    text = "guidance_scale: [1, 2, 3]"
    assert load(tmp_path, text, "guidance_scale=[4]").guidance_scale == (4.0,)
    assert load(tmp_path, text, "guidance_scale.1=7").guidance_scale == (1.0, 7.0, 3.0)
    assert load(tmp_path, text, "guidance_scale=null").guidance_scale is None


@pytest.mark.parametrize("text", ["a: b.txt", "[x].txt", "1.txt", "7", "true", "=", "a,b", "#1"])
def test_the_value_of_a_text_field_is_taken_as_it_stands(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, "", f"prompts={text}").prompts == text


def test_here_is_the_folder_of_the_file_and_keys_can_be_referred_to(tmp_path: Path) -> None:
    config = load(tmp_path, "seed: 3", "output=${here}/x-${seed}")
    assert config.output == f"{tmp_path}/x-3"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("guidence_scale: 3", "c.yaml: guidence_scale = 3 is an unknown key; did you mean 'guidan"),
        ("xyz: 3", "xyz = 3 is an unknown key; valid are aspect_ratio,"),
        ("here: 3", "here = 3 is an unknown key"),
        ("seed: -1", "seed = -1 must be greater than or equal to 0"),
        ("seed: true", "seed = True must be an integer"),
        ("seed: 1.5", "seed = 1.5 must be an integer"),
        ("batch_size: 0", "batch_size = 0 must be greater than or equal to 1"),
        ("temperature: 0", "temperature = 0 must be greater than 0"),
        ("temperature: [1, 0]", "temperature.1 = 0 must be greater than 0"),
        ("temperature: []", "temperature = [] "),
        ("guidance_scale: .inf", "guidance_scale = inf must be a finite number"),
        ("guidance_layers: [1]", "guidance_layers.0 = 1 must be less than or equal to 0"),
        ("top_p: 1.1", "top_p = 1.1 must be less than or equal to 1"),
        ("dtype: fp8", "dtype = 'fp8' must be 'float32' or 'bfloat16'"),
        ("device: tpu", "device = 'tpu' "),
        ("height: 256", "height and width must be given together"),
        ("{height: 256, width: 256, aspect_ratio: 1}", "not valid YAML"),
        ("height: 64\nwidth: 64\naspect_ratio: 1", "aspect_ratio and height/width exclude"),
        ("seed: ${nothing}", "seed: Interpolation key 'nothing' not found"),
        ("seed: 1\nseed: 2", "not valid YAML"),
        ("seed: [", "c.yaml:4: not valid YAML"),
    ],
)
def test_each_mistake_names_file_field_value_and_what_is_allowed(
    tmp_path: Path, line: str, told: str
) -> None:
    with pytest.raises(UserError) as error:
        load(tmp_path, line)
    assert told in str(error.value)
    assert "c.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        load(tmp_path, "seed: -1\ntop_p: 2", "topk=3", "batch_size.2=1", "word", "guidance_scale=x")
    told = str(error.value)
    assert told.startswith("6 mistakes")
    for part in ("c.yaml: seed", "c.yaml: top_p", "'topk=3'", "'batch_size.2=1'", "'word'"):
        assert part in told
    assert "argument 'guidance_scale=x': guidance_scale = 'x' must be a number or" in told


@pytest.mark.parametrize("content", [None, "- 1", "a", b"\xff"])
def test_a_file_that_is_no_config_is_told(tmp_path: Path, content: str | bytes | None) -> None:
    path = tmp_path / "c.yaml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=r"c\.yaml"):
        load_config(GenerateConfig, path)


def test_a_policy_file_stands_for_its_content_and_every_key_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "half.yaml").write_text(
        "kind: lattice\nscales: {-2: {keep_ratio: 0.5}, -1: {keep_ratio: 0.5}}\n"
    )
    words = ["pruning.scales.-1.keep_ratio=0.25", "pruning.scales.*.rows=cond"]
    policy = load(tmp_path, "pruning: ${here}/half.yaml", *words).pruning
    assert {key: (rule.keep_ratio, rule.rows) for key, rule in policy.scales.items()} == {
        "-2": (0.5, "cond"),
        "-1": (0.25, "cond"),
    }
    assert load(tmp_path, "pruning: ${here}/half.yaml", "pruning=null").pruning is None


def test_a_mistake_in_a_policy_file_names_that_file(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("kind: lattice\nscope: token\n")
    with pytest.raises(UserError, match=r"^\S*bad\.yaml: pruning\.scope = 'token' must be"):
        load(tmp_path, "pruning: ${here}/bad.yaml")
