"""Whatever a prompt file holds, it is read as it stands or refused, and no id leaves the folder."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infinity.errors import UserError
from infinity.io.prompts import check_id, read_prompts
from infinity.io.rows import image_name

relaxed = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@relaxed
@given(text=st.text(max_size=200) | st.from_regex(r"[./\\a ~:]{1,8}", fullmatch=True))
def test_an_accepted_id_names_a_file_inside_its_folder(tmp_path: Path, text: str) -> None:
    try:
        check_id(text, "f:1")
    except UserError:
        return
    file = tmp_path / f"{image_name(text, 2**53)}.preview.png"
    assert Path(os.path.normpath(file)).parent == tmp_path
    file.write_bytes(b"")
    assert file.name in os.listdir(tmp_path)
    file.unlink()


@relaxed
@given(prompts=st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]))))
def test_txt_gives_back_its_lines(tmp_path: Path, prompts: list[str]) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes("\n".join(prompts).encode())
    kept = [prompt.strip() for prompt in prompts if prompt.removeprefix("\ufeff").strip()]
    if not kept:
        with pytest.raises(UserError):
            list(read_prompts(path))
        return
    rows = list(read_prompts(path))
    assert [row.prompt.removeprefix("\ufeff").strip() for row in rows] == [
        prompt.removeprefix("\ufeff").strip() for prompt in kept
    ]
    assert len({row.id for row in rows}) == len(rows)


@relaxed
@given(
    fields=st.dictionaries(
        st.sampled_from(["prompt", "id", "seed", "negative_prompt", "note"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text()),
    )
)
def test_jsonl_keeps_what_it_accepts(tmp_path: Path, fields: dict) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(fields))
    try:
        (row,) = read_prompts(path)
    except UserError:
        return
    assert row.prompt == fields["prompt"]
    assert row.seed == fields.get("seed")


@relaxed
@given(data=st.binary(max_size=300), suffix=st.sampled_from([".txt", ".jsonl", ".csv"]))
def test_no_bytes_make_it_fail_otherwise(tmp_path: Path, data: bytes, suffix: str) -> None:
    path = tmp_path / f"p{suffix}"
    path.write_bytes(data)
    try:
        rows = list(read_prompts(path))
    except UserError:
        return
    assert rows
