"""Trains tokenizer and transformer at toy size with bf16 autocast and compiled modules, on a GPU if
there is one. Run by ``test_train_gpu.py`` in a process of its own: the run-time shape checks of the
tests can't be traced by the compiler.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from test_train_tokenizer import CONFIG as TOKENIZER
from test_train_tokenizer import GAINS, UNIT
from test_train_transformer import CONFIG as TRANSFORMER
from test_train_transformer import PHASE
from training_toys import WordEncoder, squares

from infinity.training.tokenizer import run_tokenizer
from infinity.training.transformer import run_transformer


def losses(folder: Path, name: str) -> list[float]:
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [row[name] for row in lines if row["event"] == "step"]


def main(folder: Path) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = replace(
        TOKENIZER,
        output_dir=str(folder / "tokenizer"),
        arms=(UNIT, GAINS),
        compare_seconds=1.0,
        max_steps=60,
        compile=True,
    )
    trained = run_tokenizer(tokenizer, squares(32, device)).folder
    seen = losses(folder / "tokenizer", "reconstruction")
    assert min(seen[-5:]) < 0.8 * seen[0], seen

    last = replace(PHASE, scales=7, max_steps=10, decay=True)
    transformer = replace(
        TRANSFORMER,
        output_dir=str(folder / "transformer"),
        tokenizer_dir=str(trained),
        phases=(replace(PHASE, max_steps=60), last),
        sheet_prompts=("a red square",),
        compile=True,
    )
    assert run_transformer(transformer, squares(32, device), WordEncoder()).steps == (60, 10)
    seen = losses(folder / "transformer", "loss")
    assert sum(seen[50:55]) < 0.9 * sum(seen[:5]), seen


if __name__ == "__main__":
    main(Path(sys.argv[1]))
