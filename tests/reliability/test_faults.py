"""Whatever happens to a run, what it leaves is valid and the same command completes it alike."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_pipeline import FakePipeline
from PIL import Image
from runs import ROWS, files, rows, stepvar
from safetensors.torch import load_file, save_file
from tiny_model import write_tiny_model

from infinity.io.manifest import read_rows
from stepvar_patch.cli import main

HERE = Path(__file__).parent
MANY = ["generate", "c.yaml", "images_per_prompt=8"]
IMAGES = 8 * len(ROWS)


@pytest.fixture
def whole(work: Path) -> tuple[dict[str, bytes], list[dict]]:
    """What an undisturbed run leaves."""
    assert stepvar(*MANY) == 0
    left = files(work / "out"), rows(work / "out")
    shutil.rmtree(work / "out")
    return left


def is_valid(folder: Path) -> int:
    """How many images are finished; everything under a final name is whole."""
    for path in folder.glob("[!.]*.png"):
        with Image.open(path) as image:
            image.load()
    return len(read_rows(folder)) if list(folder.glob("run*.jsonl")) else 0


def completes(work: Path, whole: tuple[dict[str, bytes], list[dict]]) -> None:
    assert stepvar(*MANY) == 0
    assert files(work / "out") == whole[0]
    assert rows(work / "out") == whole[1]


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a run that ends with the user's mistake says."""
    capsys.readouterr()
    assert main([*words], FakePipeline().load) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err.splitlines()[-1]


@pytest.mark.parametrize(
    "kills", [pytest.param(8, id="few"), pytest.param(300, id="many", marks=pytest.mark.slow)]
)
def test_killed_at_random(tmp_path: Path, kills: int) -> None:
    command = [sys.executable, HERE / "kills.py", tmp_path, "--kills", str(kills)]
    seed = ["--seed", str(random.randrange(10**6))]
    ended = subprocess.run([*command, *seed], capture_output=True, text=True)
    assert ended.returncode == 0, (seed, ended.stderr[-2000:])
    assert json.loads(ended.stdout.splitlines()[-1])["kills"] >= kills
    assert "Traceback" not in (tmp_path / "err.log").read_text()


@pytest.fixture
def mounted(work: Path) -> Iterator[Callable[[str], None]]:
    """Mounts a small memory file system on ``out``; only root may."""

    def mount(options: str) -> None:
        (work / "out").mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(work / "out")]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("file systems cannot be mounted here")

    yield mount
    os.chdir("/")
    while subprocess.run(["umount", str(work / "out")], capture_output=True).returncode == 0:
        pass


@pytest.mark.parametrize("size_kib", [24, 64, 100, 160])
def test_a_full_disk(
    work: Path,
    whole: tuple[dict[str, bytes], list[dict]],
    mounted: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
    size_kib: int,
) -> None:
    mounted(f"size={size_kib}k")
    assert "the disk is full" in refused(capsys, *MANY)
    assert is_valid(work / "out") < IMAGES
    subprocess.run(["mount", "-o", "remount,size=16m", str(work / "out")], check=True)
    completes(work, whole)


def test_files_may_not_grow(work: Path, whole: tuple[dict[str, bytes], list[dict]]) -> None:
    limit = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000));"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "sys.path.insert(0, sys.argv[1]); from fake_pipeline import FakePipeline;"
        "from stepvar_patch.cli import main; sys.exit(main(sys.argv[2:], FakePipeline().load))"
    )
    command = [sys.executable, "-c", limit, str(HERE.parent / "e2e"), *MANY]
    ended = subprocess.run(command, cwd=work, capture_output=True, text=True)
    assert ended.returncode == 2, ended.stderr
    assert "larger than the system allows" in ended.stderr.splitlines()[-1]
    assert 0 < is_valid(work / "out") < IMAGES
    completes(work, whole)


def test_a_read_only_disk(
    work: Path,
    whole: tuple[dict[str, bytes], list[dict]],
    mounted: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    mounted("size=16m")
    assert stepvar("generate", "c.yaml", "images_per_prompt=1") == 0
    subprocess.run(["mount", "-o", "remount,ro", str(work / "out")], check=True)
    assert "the file system is read-only" in refused(capsys, *MANY)
    assert is_valid(work / "out") == len(ROWS)
    subprocess.run(["mount", "-o", "remount,rw", str(work / "out")], check=True)
    completes(work, whole)


class Sabotaged(FakePipeline):
    """Does something to the world before its ``at``-th batch."""

    deed: Callable[[], object]
    at: int = 7

    def __call__(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        if len(self.batches) == self.at:
            self.deed()
        return super().__call__(*args, **kwargs)


@pytest.mark.parametrize("replaced", [False, True])
def test_the_folder_is_removed_mid_run(
    work: Path,
    whole: tuple[dict[str, bytes], list[dict]],
    capsys: pytest.CaptureFixture[str],
    replaced: bool,
) -> None:
    def remove() -> None:
        shutil.rmtree("out")
        if replaced:
            os.mkdir("out")

    pipeline = Sabotaged()
    pipeline.deed = remove
    capsys.readouterr()
    assert stepvar(*MANY, pipeline=pipeline) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("stepvar: output: ")
    assert (
        "removed or replaced" if replaced else "folder does not exist"
    ) in err or "removed" in err
    completes(work, whole)


@pytest.mark.parametrize("step_s", [-3600.0, -1e9])
def test_the_clock_goes_back(
    work: Path,
    whole: tuple[dict[str, bytes], list[dict]],
    monkeypatch: pytest.MonkeyPatch,
    step_s: float,
) -> None:
    now = time.time
    calls = 0

    def backwards() -> float:
        nonlocal calls
        calls += 1
        return now() + step_s * calls

    monkeypatch.setattr(time, "time", backwards)
    monkeypatch.setattr(time, "time_ns", lambda: int(backwards() * 1e9))
    pipeline = Sabotaged()
    pipeline.deed = lambda: [os.utime(path, (0, 0)) for path in Path("out").iterdir()]
    assert stepvar(*MANY, pipeline=pipeline) == 0
    assert files(work / "out") == whole[0]
    assert rows(work / "out") == whole[1]
    lines = Path("out/run.jsonl").read_text().splitlines()
    assert min(json.loads(line)["ms"]["write"] for line in lines) >= 0


TAILS = [b"{", b'{"id": "apple", "se', b"\0" * 4096, b"\xff\xfe\n", b"[" * 200_000, b"null\n" * 99]


@pytest.mark.parametrize("tail", TAILS, ids=range(len(TAILS)))
def test_the_manifest_ends_in_rubbish(
    work: Path, whole: tuple[dict[str, bytes], list[dict]], tail: bytes
) -> None:
    assert stepvar("generate", "c.yaml", "images_per_prompt=3") == 0
    manifest = work / "out" / "run.jsonl"
    data = manifest.read_bytes()
    manifest.write_bytes(data[: random.randrange(len(data))] + tail)
    (work / "out" / "run.rank-00003.jsonl").write_bytes(tail + data[:-7])
    is_valid(work / "out")
    completes(work, whole)


def test_images_are_altered_or_lost(work: Path, whole: tuple[dict[str, bytes], list[dict]]) -> None:
    assert stepvar(*MANY) == 0
    pictures = sorted((work / "out").glob("*_*.png"))
    pictures[0].unlink()
    pictures[1].write_bytes(pictures[2].read_bytes())
    pictures[3].write_bytes(pictures[3].read_bytes()[:-1])
    pictures[4].unlink()
    pictures[4].symlink_to(pictures[5])
    (work / "out" / "contact_sheet.png").write_bytes(b"")
    completes(work, whole)
    assert not pictures[4].is_symlink()


def test_a_second_run_is_refused(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    pipeline = Sabotaged()
    pipeline.deed = lambda: said.append((stepvar(*MANY), capsys.readouterr().err))
    assert stepvar(*MANY, pipeline=pipeline) == 0
    assert said[0][0] == 2
    assert "output: out is in use by another run" in said[0][1]


def test_a_second_ablation_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from infinity.io.lock import RunLock
    from infinity.io.ranks import Ranks

    monkeypatch.chdir(tmp_path)
    write_tiny_model(tmp_path / "model")
    (tmp_path / "p.txt").write_text("a red apple\n")
    (tmp_path / "c.yaml").write_text("model: model\nprompts: p.txt\noutput: out\ndevice: cpu\n")
    (tmp_path / "a.yaml").write_text("config: c.yaml\noutput: table\ncells: {x: []}\nimages: 1\n")
    words = ["ablate", "a.yaml"]
    (tmp_path / "table").mkdir()
    with RunLock(tmp_path / "table", Ranks()):
        assert main(words) == 2
    assert "output: table is in use by another run" in capsys.readouterr().err
    assert not (tmp_path / "table" / "rows.jsonl").exists()
    assert main(words) == 0


def flip(data: bytes, dice: random.Random) -> bytes:
    changed = bytearray(data)
    changed[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def cut(data: bytes, dice: random.Random) -> bytes:
    return data[: dice.randrange(len(data))]


@pytest.mark.parametrize("damage", [flip, cut])
@pytest.mark.parametrize("times", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_a_damaged_shard_is_named(
    tmp_path: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[bytes, random.Random], bytes],
    times: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model, "model")
    Path("p.txt").write_text("a red apple\n")
    Path("c.yaml").write_text("model: model\nprompts: p.txt\noutput: out\ndevice: cpu\n")
    dice = random.Random()
    listed = json.loads(Path("model/manifest.json").read_text())["files"]
    for _ in range(times):
        name = dice.choice(sorted(listed))
        data = Path("model", name).read_bytes()
        Path("model", name).write_bytes(damage(data, dice))
        capsys.readouterr()
        assert main(["generate", "c.yaml"]) == 2
        err = capsys.readouterr().err
        assert f"model/{name}: " in err
        assert "fetch it again" in err
        assert len(err.splitlines()) == 1
        Path("model", name).write_bytes(data)
    assert not list(Path("out").glob("*.png"))
    assert main(["generate", "c.yaml"]) == 0


def test_every_damaged_file_is_named_at_once(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model, "model")
    Path("p.txt").write_text("a red apple\n")
    Path("c.yaml").write_text("model: model\nprompts: p.txt\noutput: out\ndevice: cpu\n")
    names = sorted(json.loads(Path("model/manifest.json").read_text())["files"])
    for name in names:
        data = bytearray(Path("model", name).read_bytes())
        data[-1] ^= 1
        Path("model", name).write_bytes(data)
    assert main(["generate", "c.yaml"]) == 2
    first, *rest = capsys.readouterr().err.splitlines()
    assert first == f"stepvar: {len(names)} mistakes:"
    assert sorted(line.split(":")[0].strip() for line in rest) == [f"model/{n}" for n in names]
    assert len(names) > 3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("component", ["transformer", "tokenizer", "text_encoder"])
def test_weights_that_are_no_numbers_are_refused(
    tmp_path: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    component: str,
    value: float,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model, "model")
    Path("p.txt").write_text("a red apple\n")
    Path("c.yaml").write_text("model: model\nprompts: p.txt\noutput: out\ndevice: cpu\n")
    manifest = json.loads(Path("model/manifest.json").read_text())
    name = next(
        n
        for n, entry in sorted(manifest["files"].items())
        if entry["component"] == component and n.endswith(".safetensors")
    )
    state = load_file(Path("model", name))
    key = next(k for k, v in state.items() if v.is_floating_point() and v.ndim)
    state[key].view(-1)[-1] = value
    save_file(state, Path("model", name))
    from infinity.io.files import file_sha256

    manifest["files"][name]["sha256"] = file_sha256(Path("model", name))
    manifest["files"][name]["bytes"] = Path("model", name).stat().st_size
    Path("model/manifest.json").write_text(json.dumps(manifest))
    assert main(["generate", "c.yaml"]) == 2
    err = capsys.readouterr().err
    assert "there is NaN or infinity in" in err
    assert key.partition("::")[0] in err
    assert not list(Path("out").glob("*.png"))
