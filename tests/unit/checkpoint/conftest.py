"""Tensors and files of a small model."""

from pathlib import Path

import pytest
import torch
from spec_shapes import tokenizer_shapes, transformer_shapes
from toy_checkpoint import CONFIG, TOKENIZER, TRANSFORMER, State, random_state

from infinity.checkpoint import save_model_directory


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
