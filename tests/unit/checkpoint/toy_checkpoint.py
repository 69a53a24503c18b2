"""A small model's tensors by their released names, in every container they are released in."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from spec_shapes import Shape
from torch import Tensor

from infinity.checkpoint import load_into
from infinity.config import ModelConfig, TextEncoderConfig, TokenizerConfig, TransformerConfig
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


def loaded(config: TransformerConfig, tensors: Any) -> State:
    with torch.device("meta"):
        module = InfinityTransformer(config)
    load_into(module, tensors, context="test")
    return module.state_dict()


def assert_equal(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


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
