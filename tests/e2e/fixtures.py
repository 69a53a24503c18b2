"""What the suites that drive the command line share; their ``conftest.py`` import it."""

import json
from pathlib import Path

import pytest
from fake_pipeline import write_model_directory
from runs import ROWS
from tiny_model import write_tiny_model


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


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model directory, for reading only."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    write_tiny_model(folder)
    return folder
