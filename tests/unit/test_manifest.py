"""Run folders: what counts as finished, and what a second run may not do."""

import errno
import fcntl
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from infinity.errors import UserError
from infinity.io.files import file_sha256, write_atomic
from infinity.io.manifest import RunFolder
from infinity.io.ranks import Ranks
from infinity.io.rows import ImageRow

CONFIG = {"seed": 1, "guidance_scale": (1.0, 2.0), "temperature": None, "batch_size": 1}


def fixed(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name != "batch_size"}


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_threads_write_files_with_the_users_permissions(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with ThreadPoolExecutor(8) as pool:
            names = [tmp_path / str(i) for i in range(200)]
            list(pool.map(lambda path: write_atomic(path, lambda file: file.write(b"x")), names))
        assert {path.stat().st_mode & 0o777 for path in names} == {0o666 & ~mask}
        assert os.umask(mask) == mask
    finally:
        os.umask(before)


@pytest.mark.parametrize("lock", ["flock", "lockf"])
def test_a_file_system_without_locks_is_told_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lock: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    ranks = Ranks(rank=0, world=2, run="a")
    monkeypatch.setattr(fcntl, lock, refuse)
    told = r"cannot lock .* its file system gives no locks"
    with (
        pytest.raises(UserError, match=told),
        RunFolder(tmp_path / "out", CONFIG, fixed, ranks) as folder,
    ):
        folder.claims.take(0)


def finish(folder: RunFolder, name: str) -> ImageRow:
    file = folder.path / f"{name}_5.png"
    file.write_bytes(name.encode())
    row = ImageRow(
        id=name,
        seed=5,
        prompt=f"ein {name}\u2028",
        negative_prompt=None,
        file=file.name,
        sha256=file_sha256(file),
        weights="w",
        ms={"text": 1.0},
        extra={"k": [1]},
    )
    folder.append(row)
    return row


@pytest.fixture
def two(tmp_path: Path) -> Path:
    with RunFolder(tmp_path / "run", CONFIG, fixed) as folder:
        finish(folder, "a")
        finish(folder, "b")
    return tmp_path / "run"


def finished(path: Path) -> list[str]:
    with RunFolder(path, CONFIG, fixed) as folder:
        return [row.id for row in folder.finished.values()]


def test_rows_come_back(two: Path) -> None:
    before = (two / "run.jsonl").read_bytes()
    assert finished(two) == ["a", "b"]
    assert (two / "run.jsonl").read_bytes() == before


@pytest.mark.parametrize("cut", [1, 20, 150])
def test_a_half_written_last_row_is_dropped(two: Path, cut: int) -> None:
    manifest = two / "run.jsonl"
    first = manifest.read_bytes().split(b"\n")[0] + b"\n"
    manifest.write_bytes(manifest.read_bytes()[:-cut])
    assert finished(two) == ["a"]
    assert manifest.read_bytes() == first


def test_an_altered_or_missing_image_is_not_finished(two: Path) -> None:
    (two / "a_5.png").write_bytes(b"altered")
    assert finished(two) == ["b"]
    (two / "b_5.png").unlink()
    assert finished(two) == []


@pytest.mark.parametrize(
    "line",
    ["", "null", "{}", "[1", '{"id": 1}', "\xff", "[" * 99_999, '{"id": "a", '],
    ids=["empty", "null", "object", "cut", "short", "bytes", "deep", "key twice"],
)
def test_a_damaged_row_is_dropped(two: Path, line: str) -> None:
    manifest = two / "run.jsonl"
    rows = manifest.read_bytes()
    data = line.encode("latin-1")
    if line.endswith(", "):
        data += rows.partition(b"\n")[0].removeprefix(b"{")
    manifest.write_bytes(data + b"\n" + rows)
    assert finished(two) == ["a", "b"]
    assert manifest.read_bytes() == rows


def test_a_row_cannot_point_outside_the_folder(two: Path) -> None:
    (two.parent / "c_5.png").write_bytes(b"c")
    row = json.loads((two / "run.jsonl").read_text().split("\n")[0])
    row |= {"id": "../c", "file": "../c_5.png", "sha256": file_sha256(two.parent / "c_5.png")}
    with (two / "run.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    assert finished(two) == ["a", "b"]


def test_what_a_killed_run_left_behind_is_cleared(two: Path) -> None:
    (two / ".stepvar-abc.tmp").write_bytes(b"half")
    finished(two)
    assert not list(two.glob(".stepvar*"))


def test_another_setting_is_refused_by_name(two: Path) -> None:
    with pytest.raises(UserError, match=r"other settings \(seed was 1, now 2; temperature was nul"):
        RunFolder(two, {**CONFIG, "seed": 2, "temperature": 1.0}, fixed)
    RunFolder(two, {**CONFIG, "batch_size": 4}, fixed).__exit__(None, None, None)


def test_two_runs_cannot_share_a_folder(two: Path) -> None:
    with RunFolder(two, CONFIG, fixed), pytest.raises(UserError, match="in use by another run"):
        RunFolder(two, CONFIG, fixed)
    assert finished(two) == ["a", "b"]


@pytest.mark.parametrize("content", ["other: 1", "[", "3", b"\xff"])
def test_a_foreign_config_is_refused(tmp_path: Path, content: str | bytes) -> None:
    data = content.encode() if isinstance(content, str) else content
    (tmp_path / "config.yaml").write_bytes(data)
    with pytest.raises(UserError, match=r"config\.yaml"):
        RunFolder(tmp_path, CONFIG, fixed)
    assert (tmp_path / "config.yaml").read_bytes() == data


def test_a_file_in_the_way_or_a_missing_config_is_told(two: Path) -> None:
    (two / "x").write_text("")
    for path in (two / "x", two / "x" / "y"):
        with pytest.raises(UserError, match="output: "):
            RunFolder(path, CONFIG, fixed)
    (two / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"has the manifest of a run but no config"):
        RunFolder(two, CONFIG, fixed)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="permission denied"):
        RunFolder(tmp_path / "run", CONFIG, fixed)


def test_a_row_that_does_not_fit_leaves_no_trace(
    two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (two / "run.jsonl").read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with RunFolder(two, CONFIG, fixed) as folder:
        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(UserError, match="the disk is full"):
            finish(folder, "c")
        assert "c_5.png" not in folder.finished
    assert (two / "run.jsonl").read_bytes() == before


RANKS = [Ranks(rank=rank, world=2, run="launch") for rank in range(2)]


def test_processes_of_one_launch_share_the_folder_and_leave_one_manifest(two: Path) -> None:
    with RunFolder(two, CONFIG, fixed, RANKS[0]) as a, RunFolder(two, CONFIG, fixed, RANKS[1]) as b:
        assert a.claims.take(0)
        finish(b, "d")
        finish(a, "c")
        assert "d_5.png" not in a.finished
        for ranks in (Ranks(), Ranks(rank=1, world=2, run="launch")):
            with pytest.raises(UserError, match="in use by another run"):
                RunFolder(two, CONFIG, fixed, ranks)
        order = ["d_5.png", "c_5.png", "b_5.png"]
        assert not a.merge(order)
        assert b.merge(order)
    lines = (two / "run.jsonl").read_text().removesuffix("\n").split("\n")
    rows = [json.loads(line)["id"] for line in lines]
    assert rows == ["d", "c", "b", "a"]
    assert {path.name for path in two.iterdir() if path.suffix != ".png"} == {
        *("run.jsonl", "config.yaml", ".lock")
    }


def test_manifests_of_a_killed_launch_are_taken_over(two: Path) -> None:
    with RunFolder(two, CONFIG, fixed, RANKS[1]) as folder:
        finish(folder, "c")
        (two / "d_5.png").write_bytes(b"half")
    assert finished(two) == ["a", "b", "c"]
    assert not list(two.glob("run.rank-*"))


def test_a_folder_removed_under_a_run_is_told(two: Path) -> None:
    with RunFolder(two, CONFIG, fixed) as folder:
        two.rename(two.parent / "moved")
        two.mkdir()
        with pytest.raises(UserError, match="removed or replaced"):
            finish(folder, "c")


@pytest.mark.parametrize("name", [".lock", "run.jsonl", ".claims"])
def test_links_in_the_folder_are_not_written_through(two: Path, name: str) -> None:
    outside = two.parent / "outside"
    outside.write_bytes(b"")
    (two / name).unlink(missing_ok=True)
    (two / name).symlink_to(outside)
    try:
        with RunFolder(two, CONFIG, fixed) as folder:
            finish(folder, "c")
            folder.claims.finish(0, 1)
    except UserError as error:
        assert "links are not followed" in str(error)  # noqa: PT017
    assert outside.read_bytes() == b""
