"""Packages of drawings: fetched, checked, read in memory."""

import base64
import json
from dataclasses import replace
from pathlib import Path

import pytest
from toy_drawings import archive

from infinity.errors import UserError
from infinity.training.data.concepts import read_concepts
from infinity.training.data.fetch import archive_name, fetch, read_members


def test_a_cached_archive_is_used_when_its_hash_is_right(tmp_path: Path) -> None:
    package = archive(tmp_path / "toy-set-1.0.0.tgz", {"package/a.json": b"{}"})
    assert archive_name(package) == "toy-set-1.0.0.tgz"
    assert fetch(package, tmp_path) == tmp_path / "toy-set-1.0.0.tgz"


def test_a_changed_archive_is_refused(tmp_path: Path) -> None:
    package = archive(tmp_path / "toy-set-1.0.0.tgz", {"package/a.json": b"{}"})
    wrong = replace(package, integrity="sha512-" + base64.b64encode(bytes(64)).decode())
    with pytest.raises(UserError, match="pins"):
        fetch(wrong, tmp_path)


def test_members_are_read_in_memory_and_links_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.tgz"
    archive(path, {"package/a.json": b"1", "../outside": b"2", "package/b": b"3"})
    before = set(tmp_path.parent.iterdir())
    assert read_members(path, {"a.json", "../outside", "link"}.__contains__) == {
        "a.json": b"1",
        "../outside": b"2",
    }
    assert set(tmp_path.parent.iterdir()) == before


def test_a_broken_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.tgz").write_bytes(b"no tar")
    with pytest.raises(UserError, match=r"a\.tgz"):
        read_members(tmp_path / "a.tgz", lambda _: True)


def test_signs_clocks_variants_and_gendered_forms_are_no_concepts() -> None:
    groups = json.dumps({"subgroups": {"1": "food-fruit", "2": "zodiac", "3": "person-role"}})
    rows = [
        ("red apple", "1F34E", 1, ["fruit", "red", "ripe"]),
        ("Leo", "264C", 2, []),
        ("one o’clock", "1F550", 1, []),
        ("man: bald", "1F468-200D-1F9B2", 3, []),
        ("woman pilot", "1F469-200D-2708-FE0F", 3, []),
        ("pilot", "1F9D1-200D-2708-FE0F", 3, []),
    ]
    keys = ("label", "hexcode", "subgroup", "tags")
    data = json.dumps([dict(zip(keys, row, strict=True)) for row in rows])
    concepts = read_concepts(data.encode(), groups.encode())
    assert {c.name for c in concepts.values()} == {"red apple", "pilot"}
    assert concepts["1f34e"].keywords == ("fruit", "ripe")
    assert "1f9d1-200d-2708" in concepts
