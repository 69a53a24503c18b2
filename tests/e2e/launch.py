"""Several processes of one run, started as a launcher would start them."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import fake_pipeline

_PORTS = itertools.count(29_500)


def processes(
    work: Path, world: int, words: list[str], *, delay_s: float | None = None
) -> list[subprocess.Popen[bytes]]:
    """All ranks of a run; the real pipeline, or the fake one that takes ``delay_s`` per batch."""
    script = ["-m", "stepvar_patch.cli"]
    if delay_s is not None:
        script = [fake_pipeline.__file__, str(delay_s)]
    launch = {"WORLD_SIZE": str(world), "MASTER_ADDR": "here", "MASTER_PORT": str(next(_PORTS))}
    return [
        subprocess.Popen(
            [sys.executable, *script, *words],
            cwd=work,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", **launch, "RANK": str(rank)},
        )
        for rank in range(world)
    ]


def finish(started: list[subprocess.Popen[bytes]]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of every process."""
    said = [process.communicate(timeout=300) for process in started]
    return [
        (process.returncode, out.decode(), err.decode())
        for process, (out, err) in zip(started, said, strict=True)
    ]
