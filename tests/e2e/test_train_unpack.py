"""What is shipped can be trained on: a model directory as checkpoints, and back."""

from pathlib import Path

import pytest
import torch

from infinity.checkpoint import load_model_config, read_state
from infinity.checkpoint.directory import source_of
from infinity.errors import UserError
from infinity.training.checkpoint import load_tensors
from infinity.training.export import export_model
from infinity.training.tokenizer_checkpoint import load_tokenizer
from infinity.training.unpack import unpack_model

WEIGHTS = Path(__file__).parents[2] / "weights"

pytestmark = pytest.mark.weights


def test_unpacked_and_exported_again_the_model_is_what_it_was(tmp_path: Path) -> None:
    unpack_model(WEIGHTS, tmp_path / "parts")
    transformer, tokenizer = (tmp_path / "parts" / n for n in ("transformer", "tokenizer"))
    export_model(transformer, tokenizer, WEIGHTS / "text_encoder", tmp_path / "model")
    assert load_model_config(tmp_path / "model") == load_model_config(WEIGHTS)
    assert source_of(tmp_path / "model") == source_of(WEIGHTS)
    for component in ("tokenizer", "transformer"):
        before, after = (read_state(folder, component) for folder in (WEIGHTS, tmp_path / "model"))
        assert set(before) == set(after)
        for key in before:
            # Values pass through fp16 and are rounded to int8 once more.
            step = before[key].flatten(1).abs().amax(1).max() / 127 if before[key].ndim > 1 else 0
            assert torch.allclose(before[key], after[key], rtol=2e-3, atol=float(step)), key
    gains = load_tensors(tokenizer, "ema")["quantizer.scale_gains"]
    assert torch.equal(load_tokenizer(tokenizer).gains, gains.float())


def test_neither_overwrites_nor_takes_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no model directory, it has no manifest\.json"):
        unpack_model(tmp_path, tmp_path / "parts")
    (tmp_path / "parts/transformer").mkdir(parents=True)
    with pytest.raises(UserError, match="parts/transformer: is there already"):
        unpack_model(WEIGHTS, tmp_path / "parts")
