"""Reading and writing checkpoints: containers, names, pairing, damage, memory."""

import dataclasses
import json
import logging
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from spec_shapes import Shape, tokenizer_shapes, transformer_shapes
from torch import Tensor

from infinity.checkpoint import (
    digest,
    load_into,
    load_model_config,
    open_official,
    read_state,
    save_model_directory,
    text_encoder_folder,
)
from infinity.checkpoint.convert import convert
from infinity.checkpoint.official import read_transformer
from infinity.checkpoint.rules import match_keys
from infinity.config import (
    PRESETS,
    ModelConfig,
    TextEncoderConfig,
    TokenizerConfig,
    TransformerConfig,
)
from infinity.errors import UserError
from infinity.tokenizer.autoencoder import BSQTokenizer
from infinity.transformer.model import InfinityTransformer

TRANSFORMER = TransformerConfig(
    depth=4, width=64, heads=4, block_chunks=2, codebook_dim=8, text_width=256, text_max_tokens=16
)
TOKENIZER = TokenizerConfig(
    codebook_dim=8, patch_size=4, channels=32, channel_multipliers=(1, 1, 2), res_blocks=1
)
CONFIG = ModelConfig(
    name="toy",
    resolution="0.06M",
    transformer=TRANSFORMER,
    tokenizer=TOKENIZER,
    text_encoder=TextEncoderConfig(kind="t5", width=256, max_tokens=16),
)
State = dict[str, Tensor]


def random_state(shapes: dict[str, Shape], seed: int = 0) -> State:
    generator = torch.Generator().manual_seed(seed)
    state = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    return {k: v.zero_() if k.endswith("zero_k_bias") else v for k, v in state.items()}


@pytest.fixture
def transformer() -> State:
    return random_state(transformer_shapes(TRANSFORMER))


@pytest.fixture
def tokenizer() -> State:
    return random_state(tokenizer_shapes(TOKENIZER), seed=1)


@pytest.fixture
def tokenizer_file(tmp_path: Path, tokenizer: State) -> Path:
    path = tmp_path / "vae.pth"
    torch.save({"vae": tokenizer, "step": 3}, path)
    return path


@pytest.fixture
def folder(tmp_path: Path, transformer: State, tokenizer: State) -> Path:
    path = tmp_path / "model"
    save_model_directory(path, CONFIG, transformer, tokenizer, max_shard_bytes=1 << 18)
    return path


def loaded(config: TransformerConfig, tensors: Any) -> State:
    with torch.device("meta"):
        module = InfinityTransformer(config)
    load_into(module, tensors, context="test")
    return module.state_dict()


def assert_equal(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


# --- names ---------------------------------------------------------------------------------------


def test_all_problems_are_reported_at_once(transformer: State) -> None:
    transformer["extra.weight"] = torch.zeros(1)
    del transformer["head.bias"]
    transformer["word_embed.weight"] = torch.zeros(64, 9)
    with pytest.raises(UserError) as error:
        loaded(TRANSFORMER, transformer)
    message = str(error.value)
    assert "1 missing: head.bias" in message
    assert "1 unexpected: extra.weight" in message
    assert "1 misshapen: word_embed.weight [64, 9] instead of [64, 8]" in message


def test_legacy_leftovers_and_missing_zero_biases_are_accepted(transformer: State) -> None:
    expected = dict(transformer)
    for key in list(transformer):
        if key.endswith("zero_k_bias"):
            del transformer[key]
    for key in ("lvl_1L", "attn_bias_for_masking", "Infinity_visible_kvlen"):
        transformer[key] = torch.ones(3)
    transformer["block_chunks.0.module.0.ln_wo_grad.weight"] = torch.ones(64)
    scale = "block_chunks.1.module.1.sa.scale_mul_1H11"
    transformer[scale] = transformer[scale].view(1, 1, 4, 1)
    assert_equal(loaded(TRANSFORMER, transformer), expected)


@pytest.mark.parametrize(("stored", "wanted"), [(2, 1), (1, 2), (4, 2), (2, 4)])
def test_either_block_naming_fills_the_model(stored: int, wanted: int) -> None:
    source = dataclasses.replace(TRANSFORMER, block_chunks=stored)
    target = dataclasses.replace(TRANSFORMER, block_chunks=wanted)
    state = random_state(transformer_shapes(source))
    found = loaded(target, state)
    size, other = 4 // stored, 4 // wanted
    for i in range(4):
        a = f"block_chunks.{i // size}.module.{i % size}." if stored > 1 else f"blocks.{i}."
        b = f"block_chunks.{i // other}.module.{i % other}." if wanted > 1 else f"blocks.{i}."
        assert torch.equal(found[b + "ffn.fc1.bias"], state[a + "ffn.fc1.bias"])


def test_cfg_uncond_is_cut_or_keeps_the_models_own_tail(transformer: State) -> None:
    table = transformer["cfg_uncond"]
    module = InfinityTransformer(dataclasses.replace(TRANSFORMER, text_max_tokens=20))
    with torch.no_grad():
        module.cfg_uncond.fill_(7)
    load_into(module, transformer, context="test")
    assert torch.equal(module.cfg_uncond[:16], table)
    assert bool((module.cfg_uncond[16:] == 7).all())
    short = loaded(dataclasses.replace(TRANSFORMER, text_max_tokens=5), transformer)
    assert torch.equal(short["cfg_uncond"], table[:5])


def test_values_are_cast_to_the_modules_dtype(transformer: State) -> None:
    module = InfinityTransformer(TRANSFORMER)
    load_into(module, {k: v.bfloat16() for k, v in transformer.items()}, context="test")
    assert module.head.weight.dtype == torch.float32
    assert torch.equal(module.head.weight, transformer["head.weight"].bfloat16().float())


def test_integers_do_not_pass_for_weights(transformer: State) -> None:
    transformer["head.weight"] = torch.ones(16, 64, dtype=torch.int8)
    with pytest.raises(UserError, match=r"head\.weight is int8, not floating point"):
        loaded(TRANSFORMER, transformer)


def test_tokenizer_accepts_old_names_and_ignores_strangers(
    tokenizer: State, caplog: pytest.LogCaptureFixture
) -> None:
    old = {
        key.replace(".conv.conv.", ".conv.")
        if "sample" in key
        else key.replace(".conv.", ".").replace(".norm.", "."): value
        for key, value in tokenizer.items()
    }
    assert "encoder.down.0.downsample.conv.weight" in old
    assert "encoder.down.0.block.0.norm1.weight" in old
    old |= {"quantizer.lfq.mask": torch.ones(8), "perceptual_model.lin0": torch.ones(1)}
    module = BSQTokenizer(TOKENIZER)
    with caplog.at_level(logging.INFO, logger="infinity"):
        load_into(module, old, context="vae.pth")
    assert_equal(module.state_dict(), tokenizer)
    assert "perceptual_model.lin0" in caplog.text


def test_unknown_layers_of_the_autoencoder_are_not_ignored(tokenizer: State) -> None:
    tokenizer["encoder.mid.attn_1.q.conv.weight"] = torch.ones(1)
    with pytest.raises(UserError, match=r"1 unexpected: encoder\.mid\.attn_1"):
        load_into(BSQTokenizer(TOKENIZER), tokenizer, context="vae.pth")


# --- official containers -------------------------------------------------------------------------


def save_pth(state: State, path: Path) -> Path:
    torch.save(state, path.with_suffix(".pth"))
    return path.with_suffix(".pth")


def save_training(state: State, path: Path) -> Path:
    ema = {key: value + 1 for key, value in state.items()}
    content = {"trainer": {"gpt_fsdp": state, "gpt_ema_fsdp": ema, "opt": {"lr": 1}}, "iter": 5}
    torch.save(content, path.with_suffix(".pth"))
    return path.with_suffix(".pth")


def save_legacy(state: State, path: Path) -> Path:
    torch.save(state, path.with_suffix(".pth"), _use_new_zipfile_serialization=False)
    return path.with_suffix(".pth")


def save_single(state: State, path: Path) -> Path:
    save_file(state, path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


def save_sharded(state: State, path: Path, index: bool = True) -> Path:
    path.mkdir()
    keys = list(state)
    weight_map = {key: f"model-0000{i % 3 + 1}-of-00003.safetensors" for i, key in enumerate(keys)}
    for name in set(weight_map.values()):
        save_file({k: state[k] for k in keys if weight_map[k] == name}, path / name)
    if index:
        content = json.dumps({"metadata": {}, "weight_map": weight_map})
        (path / "model.safetensors.index.json").write_text(content)
    return path


def save_shards_only(state: State, path: Path) -> Path:
    return save_sharded(state, path, index=False)


CONTAINERS = [save_pth, save_training, save_legacy, save_single, save_sharded, save_shards_only]


@pytest.mark.parametrize("save", CONTAINERS)
def test_official_containers_open_in_place(
    save: Callable[[State, Path], Path], tmp_path: Path, transformer: State, tokenizer_file: Path
) -> None:
    path = save(transformer, tmp_path / "weights")
    model = open_official(path, tokenizer_file)
    assert model.config.transformer == TRANSFORMER
    assert model.config.tokenizer == TOKENIZER
    assert_equal(loaded(TRANSFORMER, model.transformer), transformer)


class Bomb:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return exec, ("raise SystemExit('the pickle ran')",)


@pytest.mark.filterwarnings("error")
def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, tokenizer_file: Path) -> None:
    for name, write in (
        ("zip.pth", lambda p: torch.save({"w": Bomb()}, p)),
        ("raw.pth", lambda p: p.write_bytes(pickle.dumps({"w": Bomb()}))),
    ):
        path = tmp_path / name
        write(path)
        with pytest.raises(UserError, match=rf"{name}: refused"):
            open_official(path, tokenizer_file)


def test_unreadable_files_are_one_sentence(
    tmp_path: Path, transformer: State, tokenizer_file: Path
) -> None:
    truncated = save_pth(transformer, tmp_path / "truncated")
    truncated.write_bytes(truncated.read_bytes()[:-5000])
    cut = save_single(transformer, tmp_path / "cut")
    cut.write_bytes(cut.read_bytes()[:-5000])
    empty = tmp_path / "empty.pth"
    empty.touch()
    text = tmp_path / "text.pth"
    text.write_text("hello")
    a_list = tmp_path / "list.pth"
    torch.save([torch.zeros(1)], a_list)
    gone = tmp_path / "gone.pth"
    (tmp_path / "folder").mkdir()
    for path in (truncated, cut, empty, text, a_list, gone, tmp_path / "folder"):
        with pytest.raises(UserError, match=path.name) as error:
            open_official(path, tokenizer_file)
        assert "\n" not in str(error.value)
        with pytest.raises(UserError, match=path.name):
            open_official(save_single(transformer, tmp_path / "good"), path)


def test_a_missing_shard_is_named(tmp_path: Path, transformer: State) -> None:
    path = save_sharded(transformer, tmp_path / "sharded")
    (path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match="names the shard model-00002-of-00003"):
        read_transformer(path)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/../../b", "", 3])
def test_a_shard_index_cannot_point_outside(tmp_path: Path, name: object) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"head.bias": name}}))
    with pytest.raises(UserError, match="must be a short path inside the folder"):
        read_transformer(tmp_path)


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("word_embed.weight", (64, 9)),
        ("word_embed.weight", (64,)),
        ("text_proj_for_ca.0.weight", (65, 255)),
        ("cfg_uncond", (16, 255)),
        ("block_chunks.0.module.0.sa.scale_mul_1H11", (4,)),
        ("block_chunks.0.module.0.ffn.fc1.weight", (512, 63)),
        ("head.weight", (2, 2)),
        ("head.bias", None),
        ("block_chunks.1.module.1.ffn.fc2.bias", None),
        ("block_chunks.999.module.999.x", (1,)),
        ("block_chunks.99999999999.module.0.x", (1,)),
    ],
)
def test_a_wrong_key_that_the_config_is_read_from_hides_no_other(
    tmp_path: Path, transformer: State, tokenizer: State, key: str, shape: Shape | None
) -> None:
    del transformer["lvl_embed.weight"]
    transformer["odd"] = torch.zeros(1)
    before = transformer.pop(key, None)
    if shape is not None:
        transformer[key] = torch.zeros(shape)
    del tokenizer["decoder.conv_out.conv.bias"]
    tokenizer["encoder.conv_in.conv.weight"] = torch.zeros(33, 3, 3, 3)
    torch.save(tokenizer, tmp_path / "vae.pth")
    with pytest.raises(UserError) as error:
        open_official(save_single(transformer, tmp_path / "t"), tmp_path / "vae.pth")
    first, second = error.value.sentences
    if shape is None:
        assert f"2 missing: {', '.join(sorted([key, 'lvl_embed.weight']))};" in first
    else:
        assert "1 missing: lvl_embed.weight;" in first
    if before is None:
        assert f"2 unexpected: {key}, odd" in first
    else:
        assert "1 unexpected: odd" in first
    if before is not None and shape is not None:
        assert f"1 misshapen: {key} {list(shape)} instead of {list(before.shape)}" in first
    assert "vae.pth: tensors do not fit the model: 1 missing: decoder.conv_out.conv.bias" in second
    assert "1 misshapen: encoder.conv_in.conv.weight [33, 3, 3, 3] instead of [32" in second


def test_swapped_files_are_told_apart(
    tmp_path: Path, transformer: State, tokenizer_file: Path
) -> None:
    path = save_single(transformer, tmp_path / "transformer")
    with pytest.raises(UserError, match=r"vae\.pth: not an Infinity transformer checkpoint"):
        open_official(tokenizer_file, tokenizer_file)
    with pytest.raises(UserError, match=r"transformer\.safetensors: not a tokenizer checkpoint"):
        open_official(path, path)


# --- pairing -------------------------------------------------------------------------------------


def fake_file(shapes: dict[str, Shape], path: Path) -> Path:
    """A checkpoint of the right shapes that takes no room: every tensor is an expanded zero."""
    zero = torch.zeros(1)
    torch.save({k: zero.expand(s) if s else zero for k, s in shapes.items()}, path)
    return path


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("infinity-125m", "infinity_vae_d16.pth"),
        ("infinity-2b", "infinity_vae_d32reg.pth"),
        ("infinity-8b", "infinity_vae_d56_f8_14_patchify.pth"),
    ],
)
def test_released_models_want_their_own_tokenizer(tmp_path: Path, name: str, right: str) -> None:
    preset = PRESETS[name]
    weights = fake_file(transformer_shapes(preset.transformer), tmp_path / "weights.pth")
    for other in ("infinity-125m", "infinity-2b", "infinity-8b"):
        shapes = tokenizer_shapes(PRESETS[other].tokenizer)
        path = fake_file(shapes, tmp_path / f"{other}_reg.pth")
        if other == name:
            config = open_official(weights, path).config
            assert config == preset
        else:
            with pytest.raises(UserError, match=rf"{other}_reg\.pth: .* use {right}"):
                open_official(weights, path)


def test_8b_512_is_known_by_name_or_path(tmp_path: Path) -> None:
    preset = PRESETS["infinity-8b-512"]
    weights = fake_file(transformer_shapes(preset.transformer), tmp_path / "8b_512x512.pth")
    vae = fake_file(tokenizer_shapes(preset.tokenizer), tmp_path / "vae.pth")
    assert open_official(weights, vae).config == preset
    named = open_official(weights, vae, name="infinity-8b").config
    assert named == PRESETS["infinity-8b"]


def test_a_request_for_another_model_is_refused(tmp_path: Path) -> None:
    preset = PRESETS["infinity-125m"]
    weights = fake_file(transformer_shapes(preset.transformer), tmp_path / "w.pth")
    vae = fake_file(tokenizer_shapes(preset.tokenizer), tmp_path / "vae.pth")
    with pytest.raises(UserError, match=r"is not infinity-2b: depth 12 instead of 32"):
        open_official(weights, vae, name="infinity-2b")


def test_the_plain_d32_tokenizer_draws_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    preset = PRESETS["infinity-2b"]
    weights = fake_file(transformer_shapes(preset.transformer), tmp_path / "w.pth")
    shapes = tokenizer_shapes(preset.tokenizer)
    open_official(weights, fake_file(shapes, tmp_path / "infinity_vae_d32_reg.pth"))
    assert not caplog.records
    open_official(weights, fake_file(shapes, tmp_path / "infinity_vae_d32.pth"))
    assert "infinity_vae_d32reg.pth" in caplog.text


def test_keys_of_2b_and_8b_fit_their_modules() -> None:
    for name in ("infinity-2b", "infinity-8b"):
        shapes = transformer_shapes(PRESETS[name].transformer)
        with torch.device("meta"):
            module = InfinityTransformer(PRESETS[name].transformer)
        wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
        assert match_keys(shapes, wanted, name) == {key: key for key in wanted}


# --- model directories ---------------------------------------------------------------------------


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


# --- memory --------------------------------------------------------------------------------------

_LOAD = """
import re, sys, torch
from pathlib import Path
from infinity.checkpoint import load_into
from infinity.checkpoint.official import read_transformer
from infinity.config import PRESETS
from infinity.transformer.model import InfinityTransformer

def kib(field):
    return int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

with torch.device("meta"):
    module = InfinityTransformer(PRESETS["infinity-125m"].transformer)
path = Path(sys.argv[1])
before = kib("VmRSS")
load_into(module, read_transformer(path), context=str(path))
assert float(module.head.bias[3]) == 3.0
print((kib("VmHWM") - before) * 1024 / path.stat().st_size)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_full_size_125m_file_loads_in_little_more_than_its_size(
    tmp_path: Path, suffix: str
) -> None:
    shapes = transformer_shapes(PRESETS["infinity-125m"].transformer)
    state = {key: torch.zeros(shape) for key, shape in shapes.items()}
    state["head.bias"] += torch.arange(32.0)
    path = tmp_path / f"infinity_125M_256x256{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    assert path.stat().st_size > 450e6
    out = subprocess.run(
        [sys.executable, "-c", _LOAD, str(path)], capture_output=True, text=True, check=False
    )
    assert out.returncode == 0, out.stderr
    assert 0.9 < float(out.stdout) < 1.3
