"""Official files: every container, damage, indices, what is refused."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from spec_shapes import Shape
from toy_checkpoint import (
    CONTAINERS,
    TOKENIZER,
    TRANSFORMER,
    State,
    assert_equal,
    loaded,
    save_pth,
    save_sharded,
    save_single,
)

from infinity.checkpoint import open_official
from infinity.checkpoint.official import read_transformer
from infinity.errors import UserError


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
