"""The committed results as a reader meets them: every ``table.json`` beside its ``table.md``.

``python tests/unit/rendered.py`` writes the Markdown anew, after results have changed.
"""

import json
from pathlib import Path

from stepvar_patch.experiments.ablate import report as ablation
from stepvar_patch.experiments.estimate import as_estimate
from stepvar_patch.experiments.table import report as table
from stepvar_patch.experiments.table.run import TableResult, TableRow
from stepvar_patch.experiments.table.schema import PublishedRow

RESULTS = Path(__file__).parents[2] / "results"
TABLES = sorted(RESULTS.rglob("table.json"))


def rendered(path: Path) -> str:
    """The Markdown of a ``table.json`` of ``stepvar ablate`` or ``stepvar table``."""
    value = json.loads(path.read_text())
    title, command = value["title"], value["command"]
    if "cells" in value:
        lines = [ablation.Line(**cell) for cell in value["cells"]]
        return ablation.markdown(lines, title, command)
    rows = []
    for row in value["rows"]:
        cells = {name: as_estimate(cell) for name, cell in row["cells"].items()}
        rows.append(TableRow(label=row["label"], images=row["images"], cells=cells))
    published = [PublishedRow(**row) for row in value.get("published", ())]
    result = TableResult(rows=rows, notes=value["notes"], environment=value["environment"])
    return table.markdown(title, result, published, command)


if __name__ == "__main__":
    for path in TABLES:
        path.with_suffix(".md").write_text(rendered(path))
