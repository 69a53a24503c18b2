"""A benchmark's JSON file: small, and readable line by line."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infinity.io.files import check_writable, make_folder, write_atomic


def make_folder_of(path: Path) -> None:
    """Makes the folder of a file and tries that it takes files.

    Raises:
        UserError: it cannot be made or written.
    """
    make_folder(path.parent)
    check_writable(path.parent, "output")


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Writes a record whole: one line per field, and one per entry of a list.

    Raises:
        UserError: the place cannot be written.
    """
    fields = ",\n".join(f"{_text(name)}: {_lines(value)}" for name, value in record.items())
    write_atomic(path, lambda file: file.write(f"{{\n{fields}\n}}\n".encode()))


def _lines(value: Any) -> str:
    if not isinstance(value, list) or not value:
        return _text(value)
    return "[\n" + ",\n".join(map(_text, value)) + "\n]"


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
