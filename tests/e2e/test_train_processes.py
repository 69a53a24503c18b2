"""Two training processes average their gradients: together they are one with the whole batch."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import averaging
import torch
from safetensors.torch import load_file
from test_train_transformer import tokenizer_dir  # noqa: F401 (a fixture)


def start(world: int, words: list[str]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    launch = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    every = [
        subprocess.Popen(
            [sys.executable, averaging.__file__, *words],
            env={
                **os.environ,
                **({**launch, "RANK": str(rank), "LOCAL_RANK": str(rank)} if world > 1 else {}),
                "ACCELERATE_USE_CPU": "true",
                "OMP_NUM_THREADS": "1",
            },
        )
        for rank in range(world)
    ]
    assert [process.wait(timeout=300) for process in every] == [0] * world


def test_two_processes_step_like_one(tmp_path: Path, tokenizer_dir: str) -> None:  # noqa: F811
    for world in (1, 2):
        start(world, [tokenizer_dir, str(tmp_path)])
    one = load_file(tmp_path / "gradients-1-0.safetensors")
    for rank in range(2):
        two = load_file(tmp_path / f"gradients-2-{rank}.safetensors")
        assert one.keys() == two.keys()
        for key, gradient in one.items():
            scale = gradient.abs().max().item()
            torch.testing.assert_close(two[key], gradient, rtol=1e-4, atol=1e-5 * scale + 1e-9)
    weights = [load_file(tmp_path / f"weights-2-{rank}.safetensors") for rank in range(2)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    alone = load_file(tmp_path / "weights-1-0.safetensors")
    moved = max((alone[key] - weights[0][key]).abs().max().item() for key in alone)
    assert moved < 2e-3, "the third step's weights are far apart"
