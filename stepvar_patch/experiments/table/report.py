"""The rows of a table as Markdown, LaTeX, CSV and JSON, with notes for what is missing."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from infinity.io.files import write_atomic
from stepvar_patch.experiments.estimate import NO_DENSE, Estimate
from stepvar_patch.experiments.maker import versions
from stepvar_patch.experiments.table.run import TableResult, TableRow, as_json
from stepvar_patch.experiments.table.schema import COLUMNS, PublishedRow
from stepvar_patch.experiments.tabulate import latex_table, markdown_table, rows_json


def write_table(
    folder: Path,
    title: str,
    result: TableResult,
    published: Sequence[PublishedRow],
    command: str,
) -> str:
    """Writes ``table.{md,tex,csv,json}`` and gives the Markdown.

    Args:
        folder: made if it is not there.
        title: of the table.
        result: with at least one row.
        published: shown below.
        command: that makes these files again.

    Raises:
        UserError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "title": title,
        "command": command,
        "versions": versions(),
        "environment": result.environment,
        "notes": result.notes,
        "rows": as_json(result.rows),
        "published": [{**vars(row), "values": dict(row.values)} for row in published],
    }
    text = markdown(title, result, published, command)
    body, _ = _cells(result.rows)
    tex = latex_table(body, title)
    if published:
        tex += "\n" + latex_table(_published_cells(published), f"{title}: published values")
    files = {
        "table.md": text,
        "table.tex": tex,
        "table.csv": _csv(result.rows, published),
        "table.json": rows_json(record),
    }
    for name, content in files.items():
        write_atomic(folder / name, lambda file, data=content: file.write(data.encode()))
    return text


def markdown(
    title: str, result: TableResult, published: Sequence[PublishedRow], command: str
) -> str:
    """The table, its notes, and the published values with their sources."""
    body, notes = _cells(result.rows)
    made = result.environment
    where = f" on {made['gpu'] or made['cpu']}, {made['dtype']}" if made else ""
    parts = [f"**{title}**{where}: `{command}`\n", markdown_table(body)]
    if result.notes:
        parts.append(" ".join(result.notes) + "\n")
    if notes:
        parts.append("\n".join(f"[{i}] {note}  " for i, note in enumerate(notes, 1)) + "\n")
    if published:
        lead = "Published, by others' programs on others' machines:\n"
        parts += [lead, markdown_table(_published_cells(published))]
    return "\n".join(parts)


def _cells(rows: Sequence[TableRow]) -> tuple[list[list[str]], list[str]]:
    columns = list(rows[0].cells)
    notes: list[str] = []
    table = [["", *(COLUMNS[name].title for name in columns)]]
    for row in rows:
        line = [row.label]
        for name in columns:
            estimate = row.cells.get(name)
            if estimate is None or estimate == Estimate.absent(NO_DENSE):
                line.append("–")
            elif estimate.value is None:
                if estimate.missing not in notes:
                    notes.append(estimate.missing)
                line.append(f"– [{notes.index(estimate.missing) + 1}]")
            else:
                line.append(show(name, estimate))
        table.append(line)
    return table, notes


def show(name: str, estimate: Estimate) -> str:
    """A value with half the width of its interval."""
    column = COLUMNS[name]
    value = (estimate.value or 0.0) * column.factor
    text = f"{value:.{column.decimals}f}"
    if estimate.low is None or estimate.high is None:
        return text
    half = (estimate.high - estimate.low) / 2 * column.factor
    return f"{text} ± {half:.{column.decimals}f}"


def _published_cells(published: Sequence[PublishedRow]) -> list[list[str]]:
    columns = [name for name in COLUMNS if any(name in row.values for row in published)]
    head = [
        "method",
        "model",
        "hardware",
        *(COLUMNS[name].title for name in columns),
        "source",
        "checked",
    ]
    lines = [
        [
            *(row.method, row.model, row.hardware or "–"),
            *(f"{row.values[name]:g}" if name in row.values else "–" for name in columns),
            row.source,
            row.checked,
        ]
        for row in published
    ]
    return [head, *lines]


def _csv(rows: Sequence[TableRow], published: Sequence[PublishedRow]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["row", "column", "value", "low", "high", "n", "missing", "source"])
    for row in rows:
        for name, e in row.cells.items():
            writer.writerow([row.label, name, e.value, e.low, e.high, e.n, e.missing, "ours"])
    for line in published:
        for name, value in line.values.items():
            label = f"{line.method} ({line.model})"
            writer.writerow([label, name, value, "", "", "", "", line.source])
    return out.getvalue()
