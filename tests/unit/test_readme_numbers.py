"""Every measured number in the README is in a file of results; see `quoted` for the comments."""

import json
from pathlib import Path
from typing import Any

import pytest
from quoted import blocks, evaluate, problems

ROOT = Path(__file__).parents[2]
TEXTS = [ROOT / "weights" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DATA: dict[str, Any] = {
    "ms": {"text": 7.1, "scales": 1629.4},
    "rows": [{"arm": "dense", "t": 4.0}, {"arm": "half, batch 4", "t": 1.9}],
    "a key": {"n": 1187},
    "name": "x",
}


def test_every_measured_number_of_the_readme_has_its_source() -> None:
    assert problems((ROOT / "README.md").read_text(), ROOT, complete=True) == []


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_numbers_with_a_source_are_those_of_the_source(path: Path) -> None:
    assert problems(path.read_text(), ROOT, complete=False) == []


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("sum ms / 1000", 1.6365),
        ("count rows", 2),
        ("ms.text + 1", 8.1),
        ("1 / rows[0].t", 0.25),
        ("rows[arm=half, batch 4].t * 100", 190),
        ("rows[arm=dense].t / rows[-1].t", 4 / 1.9),
        ('"a key".n', 1187),
    ],
)
def test_an_expression_is_read_from_left_to_right(expression: str, value: float) -> None:
    assert evaluate(expression, DATA) == pytest.approx(value)


@pytest.mark.parametrize(
    "expression", ["", "ms.none", "name", "ms", "1 / ", "rows[arm=x].t", "1 ^ 2"]
)
def test_an_expression_without_a_value_is_refused(expression: str) -> None:
    with pytest.raises((ValueError, LookupError, TypeError)):
        evaluate(expression, DATA)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("It takes 1.6 s.\n<!-- d.json: 1.6 s = sum ms / 1000 -->", None),
        ('| n | 1,187 |\n<!-- d.json: 1,187 = "a key".n -->', None),
        ("It takes 1.7 s.\n<!-- d.json: 1.7 s = sum ms / 1000 -->", "'1.7 s' is 1.637 in d.json"),
        ("It takes 1.6 s.", "'1.6 s' in 'It takes 1.6 s.…' has no source"),
        ("It takes 1.6 s.\n<!-- given: 1.6 s -->", None),
        ("It takes 1.6 s.\n\n<!-- d.json: 1.6 s = sum ms / 1000 -->", None),
        ("Now 7 ms\n<!-- d.json: 7 ms = ms.text -->\n\nthen 7 ms", "'7 ms' in 'then 7 ms…'"),
        ("Nothing.\n<!-- d.json: 1.6 s = sum ms / 1000 -->", "is not in the paragraph"),
        ("It takes 7 ms.\n<!-- d.json: 7 ms = ms.gone -->", "has no value (KeyError('gone'))"),
        ("It takes 7 ms.\n<!-- none.json: 7 ms = ms.text -->", "none.json"),
        ("7 of 9 ms\n<!-- d.json: 7 of 9 ms = ms.text -->", "must hold one number, it has 2"),
        ("2× as fast in\n\n    sleep 3 s\n\n`4 s` of 64×64", "'2×' in"),
        ("from 1×1 to 64×64, 2B, 512²", None),
    ],
)
def test_the_check_finds_what_is_wrong(tmp_path: Path, text: str, told: str | None) -> None:
    (tmp_path / "d.json").write_text(json.dumps(DATA))
    found = problems(text, tmp_path, complete=True)
    assert len(found) == (told is not None), found
    assert all(told in problem for problem in found if told)


def test_comments_belong_to_the_paragraph_above() -> None:
    one, two = blocks("a 1 s\n<!-- f.json: 1 s = a; 2 s =\nb -->\n\nb <!-- given: 3 s -->")
    assert one.claims == [("1 s", "f.json", "a"), ("2 s", "f.json", "b")]
    assert (two.text, two.given) == ("b", ["3 s"])
