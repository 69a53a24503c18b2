"""Both trainers on a GPU: bf16 autocast, compiled, at toy size."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from test_train_tokenizer import CONFIG as TOKENIZER
from test_train_tokenizer import GAINS, UNIT
from test_train_transformer import CONFIG as TRANSFORMER
from test_train_transformer import PHASE
from training_toys import WordEncoder, squares

from infinity.training.tokenizer import run_tokenizer
from infinity.training.transformer import run_transformer

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()


def losses(folder: Path, name: str) -> list[float]:
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [row[name] for row in lines if row["event"] == "step"]


def test_tokenizer_then_transformer(tmp_path: Path) -> None:
    tokenizer = replace(
        TOKENIZER,
        output_dir=str(tmp_path / "tokenizer"),
        arms=(UNIT, GAINS),
        compare_seconds=1.0,
        max_steps=60,
        compile=True,
    )
    folder = run_tokenizer(tokenizer, squares(32, "cuda")).folder
    seen = losses(tmp_path / "tokenizer", "reconstruction")
    assert min(seen[-5:]) < 0.8 * seen[0]

    last = replace(PHASE, scales=7, max_steps=10, decay=True)
    transformer = replace(
        TRANSFORMER,
        output_dir=str(tmp_path / "transformer"),
        tokenizer_dir=str(folder),
        phases=(replace(PHASE, max_steps=60), last),
        sheet_prompts=("a red square",),
        compile=True,
    )
    assert run_transformer(transformer, squares(32, "cuda"), WordEncoder()).steps == (60, 10)
    seen = losses(tmp_path / "transformer", "loss")
    assert sum(seen[50:55]) < 0.9 * sum(seen[:5])
