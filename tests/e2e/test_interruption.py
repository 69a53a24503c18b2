"""Killed, interrupted or out of disk, a run leaves a folder that resumes to the same bytes."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_pipeline
import pytest
from fake_pipeline import FakePipeline
from runs import ROWS, files, pixels, rows, stepvar


def test_a_full_disk_keeps_what_is_finished(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stepvar("generate", "c.yaml", "output=whole") == 0
    sync, calls = os.fsync, 0

    def fill_up(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 9:
            raise OSError(28, "No space left on device")
        sync(handle)

    monkeypatch.setattr("os.fsync", fill_up)
    assert stepvar("generate", "c.yaml") == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert "the disk is full" in err
    finished = rows(work / "out")
    assert f"{len(finished)} finished images" in err
    assert 0 < len(finished) < len(ROWS)
    monkeypatch.undo()
    os.chdir(work)
    again = FakePipeline()
    assert stepvar("generate", "c.yaml", pipeline=again) == 0
    assert sum(again.batches) == len(ROWS) - len(finished)
    for row in rows(work / "whole"):
        assert pixels(work / "out" / row["file"]) == pixels(work / "whole" / row["file"])


LONG = ["generate", "c.yaml", "preview=true", "images_per_prompt=12"]


def start(work: Path, delay_s: float) -> subprocess.Popen[bytes]:
    """A run that hears Ctrl-C, which a shell's background jobs and their children ignore."""
    return subprocess.Popen(
        [sys.executable, fake_pipeline.__file__, str(delay_s), *LONG],
        cwd=work,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for_progress(process: subprocess.Popen[bytes], manifest: Path) -> None:
    before = manifest.stat().st_size if manifest.exists() else 0
    while process.poll() is None:
        if manifest.exists() and manifest.stat().st_size > before:
            return
        time.sleep(0.002)


def test_killed_at_random_moments_it_resumes_to_the_same_bytes(work: Path) -> None:
    assert stepvar(*LONG) == 0
    os.rename("out", "whole")
    dice = random.Random()
    for kill in range(5):
        process = start(work, 0.02)
        if kill % 3:
            wait_for_progress(process, work / "out" / "run.jsonl")
            time.sleep(dice.uniform(0, 0.06))
        else:
            time.sleep(dice.uniform(0, 2))
        assert process.poll() is None, "it ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert 0 < len(rows(work / "out")) < len(rows(work / "whole"))
    assert stepvar(*LONG) == 0
    assert files(work / "out") == files(work / "whole")
    assert rows(work / "out") == rows(work / "whole")


def test_ctrl_c_ends_cleanly(work: Path) -> None:
    process = start(work, 0.3)
    for _ in range(2):  # a row that is interrupted while it is written is taken back
        wait_for_progress(process, work / "out" / "run.jsonl")
    process.send_signal(signal.SIGINT)
    err = process.communicate()[1].decode()
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    assert rows(work / "out")
