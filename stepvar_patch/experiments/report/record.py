"""Any other measurement that names its command: what it is, the environment, and its figures."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from infinity.errors import UserError
from stepvar_patch.experiments.report.model import Source, Table

_META = ("what", "command", "commands", "environment")
_DEEPEST = 8


def is_record(value: dict[str, Any]) -> bool:
    """Whether a JSON object says how it was made."""
    return "command" in value or "commands" in value


def read_record(path: Path, value: dict[str, Any]) -> Source:
    """What a record has to show: every figure in it, as tables.

    Raises:
        UserError: without a command, or nested more than 8 deep.
    """
    commands = value.get("commands", value.get("command"))
    if not commands:
        raise UserError(f"{path}: its command is empty; a result must say how it was made")
    environment = value.get("environment", {})
    if not isinstance(environment, dict):
        raise UserError(f"{path}: environment must be an object, not {environment!r:.60}")
    figures = {name: inner for name, inner in value.items() if name not in _META}
    return Source(
        title=f"Record: {path.stem}",
        path=str(path),
        summary=_text(value.get("what", "")),
        commands=[str(c) for c in (commands if isinstance(commands, list) else [commands])],
        environment={str(name): _text(inner) for name, inner in environment.items()},
        tables=list(_tables(figures, "", path, 0)),
    )


def _tables(value: Mapping[str, Any], title: str, path: Path, depth: int) -> Iterator[Table]:
    """Objects of equal shape as one table; single figures as a table of two columns."""
    if depth > _DEEPEST:
        raise UserError(f"{path}: {title} is nested too deeply to be shown")
    value = {name: _numbered(v) for name, v in value.items()}
    inner = {name: v for name, v in value.items() if isinstance(v, dict)}
    single = {name: v for name, v in value.items() if name not in inner}
    if single:
        rows = [[name, _text(v)] for name, v in single.items()]
        yield Table(title=title, head=("", "value"), rows=rows, prose=True)
    flat = {n: v for n, v in inner.items() if not any(isinstance(x, dict) for x in v.values())}
    if title and len(flat) > 1 and len(flat) == len(inner):
        columns = list(dict.fromkeys(name for row in flat.values() for name in row))
        rows = [[n, *(_text(row.get(c, "")) for c in columns)] for n, row in flat.items()]
        yield Table(title=title, head=["", *columns], rows=rows)
        return
    for name, v in inner.items():
        yield from _tables(v, f"{title}, {name}" if title else name, path, depth + 1)


def _numbered(value: Any) -> Any:
    """A list of objects as an object; other values as they are."""
    if isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
        return {str(index): entry for index, entry in enumerate(value, start=1)}
    return value


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if value is None:
        return "–"
    return str(value)
