"""Prompt files: what is read, and the sentence for each mistake."""

import json
from pathlib import Path

import pytest

from infinity.errors import UserError
from infinity.io.prompts import MAX_LINE_BYTES, derived_seed, read_prompts


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_txt_is_one_prompt_a_line_without_blank_lines_or_byte_order_mark(tmp_path: Path) -> None:
    rows = list(read_prompts(write(tmp_path, "p.txt", "\ufeffa red apple\r\n\n  \nein Bär \n")))
    assert [(row.id, row.prompt) for row in rows] == [
        ("00001", "a red apple"),
        ("00002", "ein Bär"),
    ]
    assert rows[1].where.endswith("p.txt:4")


def test_folder_is_read_in_name_order_with_the_stem_in_the_id(tmp_path: Path) -> None:
    write(tmp_path, "b.txt", "three\n")
    write(tmp_path, "a.txt", "one\ntwo\n")
    write(tmp_path, "notes.md", "not a prompt")
    rows = [(row.id, row.prompt) for row in read_prompts(tmp_path)]
    assert rows == [("a-00001", "one"), ("a-00002", "two"), ("b-00001", "three")]


def test_jsonl_keeps_ids_seeds_and_extra_fields(tmp_path: Path) -> None:
    lines = [
        {"prompt": "x", "id": "cat", "seed": 7, "negative_prompt": "dog", "kind": "pet", "n": 2},
        {"prompt": "y", "id": 12},
        {"prompt": "z"},
    ]
    path = write(tmp_path, "p.jsonl", "\n\n".join(map(json.dumps, lines)))
    first, second, third = read_prompts(path)
    assert (first.id, first.seed, first.negative_prompt) == ("cat", 7, "dog")
    assert first.extra == {"kind": "pet", "n": 2}
    assert (second.id, third.id, third.seed, third.extra) == ("12", "00003", None, {})


def test_csv_keeps_columns_and_quoted_newlines(tmp_path: Path) -> None:
    text = 'id,prompt,seed,negative_prompt,kind\ncat,"a, ""b""\nc",5,,pet\n,d, 6 ,n,\n'
    first, second = read_prompts(write(tmp_path, "p.csv", text))
    assert (first.id, first.prompt, first.seed) == ("cat", 'a, "b"\nc', 5)
    assert (first.negative_prompt, first.extra) == (None, {"kind": "pet"})
    assert (second.id, second.seed, second.negative_prompt) == ("00002", 6, "n")


def test_derived_seed_is_fixed_for_good() -> None:
    assert derived_seed(0, "00001") == 2424476083
    assert derived_seed(0, "00001") != derived_seed(1, "00001") != derived_seed(1, "00002")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("p.txt", "", "holds no prompt"),
        ("p.txt", " \n\n", "holds no prompt"),
        ("p.txt", b"fine\n\xff\xfe\n", "p.txt:2: byte 1 is not UTF-8"),
        ("p.txt", "a\x00b\n", "p.txt:1: 'prompt' has the control character U+0000"),
        ("p.txt", "x" * (MAX_LINE_BYTES + 1), "p.txt:1: the line is longer than"),
        ("p.pdf", "x", "must be a .txt, .jsonl, .csv file"),
        ("p.jsonl", "{", "p.jsonl:1: not a JSON object"),
        ("p.jsonl", "[1]", "p.jsonl:1: must be a JSON object"),
        ("p.jsonl", "[" * 60_000, "p.jsonl:1: not a JSON object"),
        ("p.jsonl", '{"prompt": "a", "x": NaN}', "p.jsonl:1: not a JSON object (NaN"),
        ("p.jsonl", '{"prompt": "a", "x": 1e999}', "p.jsonl:1: a further field cannot be kept"),
        ("p.jsonl", '{"prompt": "a", "x": "\\ud800"}', "p.jsonl:1: a further field cannot be kept"),
        ("p.jsonl", '{"prompt": " "}', "p.jsonl:1: 'prompt' must be a text that is not blank"),
        ("p.jsonl", '{"prompt": "\\ud800"}', "control character U+D800"),
        ("p.jsonl", '{"text": "a"}', "p.jsonl:1: 'prompt' must be"),
        ("p.jsonl", '{"prompt": "a", "seed": -1}', "p.jsonl:1: 'seed' must be a whole number"),
        ("p.jsonl", '{"prompt": "a", "seed": true}', "'seed' must be a whole number"),
        ("p.jsonl", '{"prompt": "a", "seed": 9007199254740992}', "'seed' must be a whole number"),
        ("p.jsonl", '{"prompt": "a", "id": 1.5}', "p.jsonl:1: 'id' must be a text"),
        ("p.jsonl", '{"prompt": "a", "negative_prompt": 3}', "'negative_prompt' must be a text"),
        (
            "p.jsonl",
            '{"prompt": "a", "id": "x"}\n{"prompt": "b", "id": "X"}',
            "p.jsonl:2: id 'X' is already used by",
        ),
        ("p.jsonl", '{"prompt":"a","id":"00002"}\n{"prompt":"b"}', "id '00002' is already used"),
        ("p.csv", "a,b\n1,2\n", "p.csv:1: the first row must name the columns"),
        ("p.csv", "prompt,prompt\n1,2\n", "p.csv:1: a column is named twice"),
        ("p.csv", "prompt,id\na\n", "p.csv:2: 1 cells, but the header names 2 columns"),
        ("p.csv", 'prompt\n"a\n', "not readable as CSV"),
        ("p.csv", "prompt,seed\na,1e3\n", "p.csv:2: 'seed' must be a whole number"),
        ("p.csv", "prompt\n", "holds no prompt"),
    ],
)
def test_each_mistake_is_told_with_its_place(
    tmp_path: Path, name: str, content: str | bytes, told: str
) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(UserError) as error:
        list(read_prompts(path))
    assert told in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "bad",
    [
        *("", " a", "a/b", "..", "a..b", "../x", "/etc/x", "a\\b", "C:x", ".hid", "a.", "nul"),
        *("COM1.x", "a\nb", "a\u202eb", "a*", "\x7f", "x" * 161, "é" * 81),
    ],
)
def test_an_id_that_is_not_a_plain_name_is_refused(tmp_path: Path, bad: str) -> None:
    path = write(tmp_path, "p.jsonl", json.dumps({"prompt": "a", "id": bad}))
    with pytest.raises(UserError, match=r"p\.jsonl:1: id "):
        list(read_prompts(path))


def test_a_missing_file_and_an_empty_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        list(read_prompts(tmp_path / "none.txt"))
    with pytest.raises(UserError, match=r"holds no \.txt file"):
        list(read_prompts(tmp_path))
