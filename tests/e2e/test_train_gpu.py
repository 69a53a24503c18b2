"""Both trainers on a GPU: bf16 autocast, compiled, at toy size."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.mark.gpu
def test_tokenizer_then_transformer(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    script = Path(__file__).with_name("train_compiled.py")
    root = str(script.parents[2])
    environment = os.environ | {
        "ACCELERATE_USE_CPU": "false",
        "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
