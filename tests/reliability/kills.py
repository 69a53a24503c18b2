"""Kills runs of the real command line at random moments and checks what is left each time.

    python tests/reliability/kills.py FOLDER --kills 300

Every run is a fork of this process, so that a kill costs milliseconds and falls into the run
itself rather than into its imports. One run in three has three processes, of which a random subset
dies at random moments; every fourth kill hits an exact call (before or after an fsync, a rename, a
truncation, a removal …) instead of a moment. The last line is a JSON summary.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

from fake_pipeline import FakePipeline, write_model_directory
from runs import ROWS, files, rows

import infinity.pipeline  # noqa: F401 (imported before the forks)
import stepvar_patch.experiments.generate  # noqa: F401
from infinity.io.files import TEMPORARY_PREFIX
from infinity.io.manifest import read_rows
from stepvar_patch.cli import main

WORDS = ["generate", "c.yaml", "images_per_prompt=8", "preview=true"]
CALLS = ("fsync", "replace", "ftruncate", "pwrite", "unlink", "open", "chmod")


def survive(folder: Path, kills: int, seed: int) -> dict[str, int]:
    """Counts of what was killed and survived.

    Raises:
        AssertionError: something was lost.
    """
    os.chdir(folder)
    dice = random.Random(seed)
    write_model_directory(folder / "model")
    (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "c.yaml").write_text(
        "model: model\nprompts: p.jsonl\noutput: out\nbatch_size: 2\ndevice: cpu\nthreads: 1\n"
    )
    out = "out"
    assert wait(fork(lambda: draw(out, 0.0))) == 0
    whole, order = files(folder / out), rows(folder / out)
    shutil.rmtree(folder / out)
    counts = {"kills": 0, "at_a_call": 0, "of_several_processes": 0, "completed_runs": 0}
    while counts["kills"] < kills:
        at_once = dice.choice((1, 1, 3))
        for _ in range(dice.randrange(2, 7)):
            counts["kills"] += strike(out, at_once, dice, counts)
            check(folder / out)
        ended = [wait(child) for child in launch(out, dice.choice((1, 1, 2)), 0.0)]
        assert set(ended) == {0}, ended
        left = files(folder / out)
        assert left == whole, sorted(n for n in left | whole if left.get(n) != whole.get(n))
        assert rows(folder / out) == order
        counts["completed_runs"] += 1
        shutil.rmtree(folder / out)
    return counts


def strike(out: str, processes: int, dice: random.Random, counts: dict[str, int]) -> int:
    """Starts a run, kills some or all of its processes, and says how many died by it."""
    if processes == 1 and dice.random() < 0.5:
        call, at = dice.choice(CALLS), dice.randrange(1, 40)
        died = wait(fork(lambda: draw(out, 0.0, die_at=(call, at)))) == -signal.SIGKILL
        counts["at_a_call"] += died
        return int(died)
    children = launch(out, processes, 0.01)
    victims = dice.sample(children, dice.randrange(1, processes + 1))
    dead = 0
    time.sleep(dice.uniform(0, 0.5))
    for victim in victims:
        time.sleep(dice.uniform(0, 0.05) * dice.randrange(2))
        os.kill(victim, signal.SIGKILL)
    for child in children:
        code = wait(child)
        assert code in (0, -signal.SIGKILL), code
        dead += code == -signal.SIGKILL
    counts["of_several_processes"] += dead if processes > 1 else 0
    return dead


def check(out: Path) -> None:
    """Every manifest row's image is whole, and every image under its final name can be read."""
    from PIL import Image

    if not out.exists():
        return
    lines = [p for p in out.glob("run*.jsonl") if p.stat().st_size]
    if lines:
        assert len({row.file for row in read_rows(out)}) >= sum(
            line.endswith(b"}\n") for p in lines[:1] for line in p.read_bytes().splitlines(True)
        )
    for path in out.glob("*.png"):
        if not path.name.startswith(TEMPORARY_PREFIX):
            with Image.open(path) as image:
                image.load()


_LAUNCHES = iter(range(10**9))


def launch(out: str, processes: int, delay_s: float) -> list[int]:
    run = {"WORLD_SIZE": str(processes), "MASTER_PORT": str(next(_LAUNCHES))}
    return [
        fork(lambda rank=rank: draw(out, delay_s, ranks={**run, "RANK": str(rank)}))  # type: ignore
        for rank in range(processes)
    ]


def draw(
    out: str,
    delay_s: float,
    ranks: dict[str, str] | None = None,
    die_at: tuple[str, int] | None = None,
) -> int:
    os.environ.update(ranks or {})
    if die_at is not None:
        arm(*die_at)
    return main([*WORDS, f"output={out}"], FakePipeline(delay_s=delay_s).load)


def arm(name: str, at: int) -> None:
    """Lets the process kill itself around the ``at``-th call of ``os.<name>``."""
    call, calls, before = getattr(os, name), 0, at % 2 == 0

    def deadly(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == at and before:
            os.kill(os.getpid(), signal.SIGKILL)
        result = call(*args, **kwargs)
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(os, name, deadly)


def fork(work: Callable[[], int]) -> int:
    child = os.fork()
    if child:
        return child
    quiet = os.open(os.devnull, os.O_RDWR)
    os.dup2(quiet, 1)
    os.dup2(os.open("err.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    try:
        os._exit(work())
    finally:
        os._exit(99)


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    summary = survive(given.folder.resolve(), given.kills, given.seed)
    print(json.dumps({**summary, "seconds": round(time.monotonic() - begun, 1)}))
