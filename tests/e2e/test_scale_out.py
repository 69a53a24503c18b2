"""One run on many processes leaves what a single process leaves, whoever dies on the way."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launch import finish, processes
from runs import files, rows, stepvar
from tiny_model import write_tiny_model

from infinity.errors import UserError
from infinity.io.ranks import Ranks, ranks_from_environment

MANY = ["generate", "c.yaml", "images_per_prompt=12", "preview=true"]


def test_three_processes_leave_the_folder_of_one(work: Path) -> None:
    assert stepvar(*MANY) == 0
    os.rename("out", "whole")
    ended = finish(processes(work, 3, MANY, delay_s=0.1))
    assert [code for code, _, _ in ended] == [0, 0, 0], ended
    assert files(work / "out") == files(work / "whole")
    assert rows(work / "out") == rows(work / "whole")
    assert "60/60 images" in ended[0][2]
    assert "60 images in" in ended[0][1]
    assert all(said == "" for _, *both in ended[1:] for said in both)


def test_the_living_draw_what_the_dead_left(work: Path) -> None:
    assert stepvar(*MANY) == 0
    os.rename("out", "whole")
    started = processes(work, 3, MANY, delay_s=0.1)
    while not list((work / "out").glob("run.rank-0000[12].jsonl")):
        time.sleep(0.01)
    for process in started[1:]:
        process.send_signal(signal.SIGKILL)
    ended = finish(started)
    assert [code for code, _, _ in ended] == [0, -9, -9]
    assert files(work / "out") == files(work / "whole")
    assert rows(work / "out") == rows(work / "whole")


def test_any_number_of_processes_resumes_a_killed_run(work: Path) -> None:
    assert stepvar(*MANY) == 0
    os.rename("out", "whole")
    dice = random.Random()
    for world in (3, 1):
        started = processes(work, world, MANY, delay_s=0.1)
        made = len(list((work / "out").glob("*_*.png"))) if (work / "out").exists() else 0
        while len(list((work / "out").glob("*_*.png"))) < made + 6:
            time.sleep(0.01)
        time.sleep(dice.uniform(0, 0.1))
        for process in started:
            process.send_signal(signal.SIGKILL)
        finish(started)
    assert 0 < len(list((work / "out").glob("*_*.png"))) < 120
    assert [code for code, _, _ in finish(processes(work, 2, MANY, delay_s=0.0))] == [0, 0]
    assert files(work / "out") == files(work / "whole")
    assert rows(work / "out") == rows(work / "whole")


@pytest.mark.slow
def test_a_second_launch_is_refused(work: Path) -> None:
    started = processes(work, 2, MANY, delay_s=0.2)
    while not list((work / "out").glob("run.rank-*.jsonl")):
        time.sleep(0.01)
    second = finish(processes(work, 2, MANY, delay_s=0.0))
    alone = stepvar(*MANY)
    ended = finish(started)
    assert alone == 2
    assert [code for code, _, _ in second] == [2, 2]
    assert "stepvar: output: out is in use by another run" in second[0][2]
    assert "stepvar: rank 1: output: out is in use by another run" in second[1][2]
    assert [code for code, _, _ in ended] == [0, 0]


def test_a_real_model_draws_the_same_bytes_on_two_processes(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "model")
    (tmp_path / "p.txt").write_text("a red apple\na blue car\nthree cats\n")
    (tmp_path / "c.yaml").write_text(
        "model: model\nprompts: p.txt\noutput: out\ndevice: cpu\nthreads: 1\n"
    )
    for world in (1, 2):
        words = ["generate", "c.yaml", f"output=out{world}", f"batch_size={world}"]
        assert [code for code, _, _ in finish(processes(tmp_path, world, words))] == [0] * world
    one, two = files(tmp_path / "out1"), files(tmp_path / "out2")
    assert {name: data for name, data in one.items() if name != "config.yaml"} == {
        name: data for name, data in two.items() if name != "config.yaml"
    }
    assert rows(tmp_path / "out1") == rows(tmp_path / "out2")


def test_a_launcher_that_contradicts_itself_is_refused() -> None:
    assert ranks_from_environment({}) == Ranks()
    both = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_PORT": "1"}
    assert ranks_from_environment(both).rank == 1
    for wrong in ({"RANK": "4"}, {"RANK": "x"}, {"WORLD_SIZE": "-1"}):
        with pytest.raises(UserError, match="environment: "):
            ranks_from_environment({**both, **wrong})
    with pytest.raises(UserError, match="environment: WORLD_SIZE is None"):
        ranks_from_environment({"RANK": "0"})


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.slow
def test_two_nodes_meet_through_torchrun(work: Path) -> None:
    assert stepvar(*MANY) == 0
    os.rename("out", "whole")
    script = Path(__file__).parent / "fake_pipeline.py"
    node = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=2"]
    meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--rdzv-id=one"]
    nodes = [
        subprocess.Popen([sys.executable, *node, *meeting, str(script), "0.05", *MANY], cwd=work)
        for _ in range(2)
    ]
    assert [node.wait(timeout=300) for node in nodes] == [0, 0]
    assert files(work / "out") == files(work / "whole")
    assert rows(work / "out") == rows(work / "whole")


@pytest.mark.slow
def test_accelerate_launches_it(work: Path) -> None:
    assert stepvar(*MANY) == 0
    os.rename("out", "whole")
    script = str(Path(__file__).parent / "fake_pipeline.py")
    how = ["--cpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no"]
    how += ["--dynamo_backend=no", f"--main_process_port={free_port()}"]
    command = ["-m", "accelerate.commands.launch", *how, script, "0.05", *MANY, "--json"]
    ended = subprocess.run([sys.executable, *command], cwd=work, capture_output=True, check=True)
    assert json.loads(ended.stdout)["images"] == 60
    assert files(work / "out") == files(work / "whole")


def test_the_ssh_example_starts_every_rank(work: Path) -> None:
    write_tiny_model(work / "tiny")
    remote = work / "ssh"
    remote.write_text('#!/bin/sh\nshift; exec sh -c "$1"\n')
    remote.chmod(0o755)
    script = Path(__file__).parents[2] / "scripts" / "ssh.sh"
    names = {"HOSTS": "one two", "SSH": str(remote), "PYTHON": sys.executable}
    words = ["c.yaml", "model=tiny", "negative_prompt=no cat; no dog"]
    subprocess.run(["bash", script, *words], cwd=work, check=True, env={**os.environ, **names})
    assert len(rows(work / "out")) == 5
    assert rows(work / "out")[0]["negative_prompt"] == "no cat; no dog"


@pytest.mark.slow
def test_the_slurm_example_starts_every_process(work: Path) -> None:
    write_tiny_model(work / "tiny")
    stubs = work / "bin"
    stubs.mkdir()
    for name, text in (("scontrol", "echo localhost; echo other"), ("srun", 'shift; exec "$@"')):
        (stubs / name).write_text(f"#!/bin/sh\n{text}\n")
        (stubs / name).chmod(0o755)
    names = {
        "PATH": f"{stubs}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "SLURM_JOB_ID": free_port(),
        "SLURM_JOB_NODELIST": "localhost,other",
        "SLURM_NNODES": "1",
        "SLURM_GPUS_ON_NODE": "2",
    }
    script = Path(__file__).parents[2] / "scripts" / "slurm.sh"
    words = ["c.yaml", "model=tiny", "negative_prompt=no cat; no dog", "--json"]
    ended = subprocess.run(
        ["bash", script, *words], cwd=work, check=True, env={**os.environ, **names}, stdout=-1
    )
    assert json.loads(ended.stdout)["images"] == len(rows(work / "out")) == 5
    assert rows(work / "out")[0]["negative_prompt"] == "no cat; no dog"
