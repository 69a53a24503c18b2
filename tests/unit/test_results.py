"""What the folder of results shows is what its numbers say."""

from pathlib import Path

import pytest
from rendered import RESULTS, TABLES, rendered


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.parent.name)
def test_every_table_is_rendered_from_its_numbers(path: Path) -> None:
    assert path.with_suffix(".md").read_text() == rendered(path)


def test_no_table_is_left_out_and_none_is_left_over() -> None:
    assert len(TABLES) > 10
    assert {path.parent for path in RESULTS.rglob("table.md")} == {path.parent for path in TABLES}
