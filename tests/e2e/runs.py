"""Runs of the real command line on the fake pipeline, and what they left behind."""

import json
from pathlib import Path

from fake_pipeline import FakePipeline
from PIL import Image

from stepvar_patch.cli import main

ROWS = [
    {"id": "apple", "prompt": "a red apple", "seed": 7, "kind": "fruit"},
    {"id": "car", "prompt": "a blue car", "negative_prompt": "wheels"},
    {"prompt": "three cats"},
    {"id": "bär", "prompt": "ein Bär"},
    {"prompt": "a castle"},
]


def stepvar(*words: str, pipeline: FakePipeline | None = None) -> int:
    return main(words, (pipeline or FakePipeline()).load)


def rows(folder: Path) -> list[dict]:
    """The manifest without what may differ between two runs."""
    lines = (folder / "run.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "ms"} for line in lines]


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a run folder but the manifest, whose timings differ."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "run.jsonl"}


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()
