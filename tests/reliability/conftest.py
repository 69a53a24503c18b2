"""The reliability suites drive the same command line, models and folders as the e2e tests."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

from fake_pipeline import write_model_directory
from runs import ROWS


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model of no weights, a prompt file and a config."""
    monkeypatch.chdir(tmp_path)
    write_model_directory(tmp_path / "model")
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "c.yaml").write_text(
        "model: model\nprompts: p.jsonl\noutput: out\nbatch_size: 2\ndevice: cpu\nthreads: 1\n"
    )
    return tmp_path
