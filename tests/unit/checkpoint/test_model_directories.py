"""Model directories: round trips, storage, replacing, damage, bad manifests."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from toy_checkpoint import (
    CONFIG,
    TRANSFORMER,
    State,
    assert_equal,
    loaded,
    save_single,
    save_training,
)

from infinity.checkpoint import (
    digest,
    load_model_config,
    read_state,
    save_model_directory,
    text_encoder_folder,
)
from infinity.checkpoint.convert import convert
from infinity.config import PRESETS
from infinity.errors import UserError


def test_a_model_directory_round_trips(folder: Path, transformer: State, tokenizer: State) -> None:
    assert load_model_config(folder) == CONFIG
    assert_equal(dict(read_state(folder, "transformer")), transformer)
    assert_equal(dict(read_state(folder, "tokenizer")), tokenizer)
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 3
    assert all(path.stat().st_size <= 1 << 18 for path in shards)
    assert text_encoder_folder(folder) is None
    assert not list(folder.parent.glob(".model*"))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_the_manifest(name: str, tmp_path: Path) -> None:
    preset = PRESETS[name]
    listed = dataclasses.replace(
        preset,
        sampling=dataclasses.replace(preset.sampling, guidance_scale=(1.0, 2.5), temperature=0.7),
    )
    one = {"x": torch.zeros(1)}
    save_model_directory(tmp_path / "m", listed, one, one)
    assert load_model_config(tmp_path / "m") == listed


def test_int8_storage_stays_within_half_a_step(
    tmp_path: Path, transformer: State, tokenizer: State
) -> None:
    path = tmp_path / "int8"
    save_model_directory(path, CONFIG, transformer, tokenizer, int8=True)
    found = read_state(path, "transformer")
    assert set(found) == set(transformer)
    weight = transformer["shared_ada_lin.1.weight"]
    step = weight.abs().amax(1, keepdim=True) / 127
    assert bool(((found["shared_ada_lin.1.weight"] - weight).abs() <= step * 0.51).all())
    loaded(TRANSFORMER, found)
    size = sum(p.stat().st_size for p in path.glob("transformer*"))
    assert size < 0.4 * sum(v.nbytes for v in transformer.values())


def test_dtype_applies_to_block_matrices_only(
    tmp_path: Path, transformer: State, tokenizer: State
) -> None:
    save_model_directory(tmp_path / "m", CONFIG, transformer, tokenizer, dtype=torch.bfloat16)
    found = read_state(tmp_path / "m", "transformer")
    assert found["block_chunks.0.module.1.ffn.fc1.weight"].dtype == torch.bfloat16
    assert found["head.weight"].dtype == torch.float32
    assert read_state(tmp_path / "m", "tokenizer")["decoder.conv_in.conv.weight"].dtype == (
        torch.float32
    )


def test_convert_writes_a_loadable_directory(
    tmp_path: Path, transformer: State, tokenizer_file: Path, tokenizer: State
) -> None:
    text = tmp_path / "t5"
    text.mkdir()
    (text / "config.json").write_text("{}")
    (text / "pytorch_model.bin").write_bytes(b"no")
    save_file({"x": torch.zeros(1)}, text / "model.safetensors")
    weights = save_training(transformer, tmp_path / "w")
    config = convert(weights, tokenizer_file, tmp_path / "out", name="mine", text_encoder=text)
    assert config.name == "mine"
    assert load_model_config(tmp_path / "out") == config
    assert_equal(loaded(TRANSFORMER, read_state(tmp_path / "out", "transformer")), transformer)
    assert_equal(dict(read_state(tmp_path / "out", "tokenizer")), tokenizer)
    encoder = text_encoder_folder(tmp_path / "out")
    assert encoder is not None
    assert {p.name for p in encoder.iterdir()} == {"config.json", "model.safetensors"}
    with pytest.raises(UserError, match="already exists"):
        convert(weights, tokenizer_file, tmp_path / "out")
    with pytest.raises(UserError, match=r"must hold config\.json"):
        convert(weights, tokenizer_file, tmp_path / "other", text_encoder=tmp_path)
    assert not (tmp_path / "other").exists()


def test_convert_refuses_tensors_that_do_not_fit(
    tmp_path: Path, transformer: State, tokenizer_file: Path
) -> None:
    del transformer["head.bias"]
    with pytest.raises(UserError, match=r"1 missing: head\.bias"):
        convert(save_single(transformer, tmp_path / "w"), tokenizer_file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_replacing_a_directory_keeps_its_card(
    folder: Path, transformer: State, tokenizer: State
) -> None:
    (folder / "README.md").write_text("card")
    before = digest(folder)
    transformer["head.bias"] += 1
    with pytest.raises(UserError, match="already exists"):
        save_model_directory(folder, CONFIG, transformer, tokenizer)
    save_model_directory(folder, CONFIG, transformer, tokenizer, replace=True)
    assert (folder / "README.md").read_text() == "card"
    assert sorted(p.name for p in folder.glob("t*")) == [
        "tokenizer-00001.safetensors",
        "transformer-00001.safetensors",
    ]
    assert digest(folder) != before
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match="already exists"):
        save_model_directory(folder, CONFIG, transformer, tokenizer, replace=True)


def test_a_failed_write_leaves_nothing(
    tmp_path: Path, transformer: State, tokenizer: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: State, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("infinity.checkpoint.writer.save_file", full)
    with pytest.raises(UserError, match=r"cannot be written .*No space left"):
        save_model_directory(tmp_path / "m", CONFIG, transformer, tokenizer)
    assert not list(tmp_path.iterdir())


def test_digest_depends_on_weights_only_of_official_files(
    tmp_path: Path, transformer: State
) -> None:
    a = save_single(transformer, tmp_path / "a")
    b = save_single(transformer, tmp_path / "b")
    assert digest(a) == digest(b)
    transformer["head.bias"][0] += 1
    assert digest(save_single(transformer, tmp_path / "c")) != digest(a)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_shard_is_named(folder: Path, damage: str) -> None:
    shard = sorted(folder.glob("transformer-*"))[1]
    content = bytearray(shard.read_bytes())
    if damage == "flip":
        content[-9] ^= 1
        shard.write_bytes(content)
    elif damage == "truncate":
        shard.write_bytes(content[:-1])
    else:
        shard.unlink()
    with pytest.raises(UserError, match=shard.name):
        read_state(folder, "transformer")
    read_state(folder, "tokenizer")


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def rename_first(name: str) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        files = manifest["files"]
        files[name] = files.pop("transformer-00001.safetensors")

    return change


@pytest.mark.parametrize("name", ["../outside.safetensors", "/tmp/x", "a/../../x", "a\\..\\x"])
def test_manifest_paths_stay_inside(folder: Path, name: str) -> None:
    edit(folder, rename_first(name))
    with pytest.raises(UserError, match="must be a short path inside the folder"):
        read_state(folder, "transformer")


def test_manifest_links_stay_inside(folder: Path) -> None:
    shard = folder / "transformer-00001.safetensors"
    outside = folder.parent / "outside.safetensors"
    shard.rename(outside)
    shard.symlink_to(outside)
    with pytest.raises(UserError, match="lies outside the folder"):
        read_state(folder, "transformer")


BAD_MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "version": (lambda m: m.update(format_version=2), "format_version 2 must be 1"),
    "config missing": (lambda m: m.pop("config"), "field config must be an object"),
    "unknown key": (
        lambda m: m["config"]["transformer"].update(dept=3),
        r"config\.transformer\.dept",
    ),
    "wrong type": (
        lambda m: m["config"]["transformer"].update(depth="deep"),
        r"config\.transformer\.depth",
    ),
    "missing field": (
        lambda m: m["config"]["tokenizer"].pop("patch_size"),
        r"config\.tokenizer\.patch_size",
    ),
    "wrong pair": (
        lambda m: m["config"]["tokenizer"].update(codebook_dim=9),
        "config: toy: codebook_dim",
    ),
    "bad resolution": (lambda m: m["config"].update(resolution="2M"), r"config\.resolution"),
}


@pytest.mark.parametrize("case", BAD_MANIFESTS)
def test_bad_manifests_are_one_sentence(folder: Path, case: str) -> None:
    change, message = BAD_MANIFESTS[case]
    edit(folder, change)
    with pytest.raises(UserError, match=message):
        load_model_config(folder)


def test_other_folders_are_no_model_directories(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UserError, match="no model directory"):
        load_model_config(tmp_path)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json: not readable"):
        load_model_config(folder)
    edit_target = folder / "manifest.json"
    edit_target.write_text(json.dumps({"format_version": 1, "config": {}, "files": {"a": {}}}))
    with pytest.raises(UserError, match=r"files\.a must have sha256"):
        read_state(folder, "tokenizer")
