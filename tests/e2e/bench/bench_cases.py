"""A small bench, and what it left behind."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_model import REPOSITORY

from stepvar_patch.cli import main

ATTENTION = REPOSITORY / "configs" / "bench" / "attention.yaml"
PRECISION = REPOSITORY / "configs" / "bench" / "precision.yaml"
BALANCED = REPOSITORY / "configs" / "pruning" / "stepvar_balanced.yaml"


@pytest.fixture
def work(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "b.yaml").write_text(
        f"weights: {model}\noutput: out/b.json\ndevice: cpu\nwarmup: 1\nrounds: 3\n"
        "baseline: dense\narms:\n  dense: {}\n"
        f"  balanced: {{pruning: {BALANCED}}}\n"
        "  inline: {pruning: {kind: fastvar}}\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bench(*words: str) -> dict[str, Any]:
    assert main(["bench", "b.yaml", *words]) == 0
    return json.loads(Path("out/b.json").read_text())
