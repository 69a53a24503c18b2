"""Tells what kind of result a path holds, and reads it."""

from dataclasses import replace
from pathlib import Path

from infinity.errors import UserError
from infinity.io.manifest import MANIFEST, read_rows
from stepvar_patch.experiments.report.ablation import is_ablation, read_ablation
from stepvar_patch.experiments.report.attention import is_attention, read_attention
from stepvar_patch.experiments.report.bench import is_bench, read_bench
from stepvar_patch.experiments.report.evaluation import is_evaluation, read_evaluation
from stepvar_patch.experiments.report.files import read_object
from stepvar_patch.experiments.report.model import Shot, Source
from stepvar_patch.experiments.report.record import is_record, read_record
from stepvar_patch.experiments.report.run_folder import read_run, shots_of
from stepvar_patch.experiments.report.table import is_table, read_table

_TABLE = "table.json"
_EVALUATION = "eval.json"
_KINDS = (
    (is_bench, read_bench),
    (is_attention, read_attention),
    (is_ablation, read_ablation),
    (is_evaluation, read_evaluation),
    (is_table, read_table),
    (is_record, read_record),
)


def read_source(path: Path) -> Source:
    """What a folder or file of results has to show.

    Args:
        path: a folder of ``stepvar ablate``, ``eval``, ``table`` or ``generate``, or a JSON file.

    Raises:
        UserError: missing, damaged, or of no kind that a report knows.
    """
    if path.is_dir():
        for name in (_TABLE, _EVALUATION):
            if (path / name).is_file():
                return replace(read_source(path / name), shots=_shots_inside(path))
        if (path / MANIFEST).is_file():
            return read_run(path)
        known = f"neither {_TABLE} nor {_EVALUATION} nor {MANIFEST}"
        raise UserError(f"{path} holds {known}; give a folder of results")
    if path.name == MANIFEST:
        return read_run(path.parent)
    value = read_object(path)
    for is_kind, read in _KINDS:
        if is_kind(value):
            return read(path, value)
    raise UserError(
        f"{path} is no result that a report knows: no file of stepvar bench, ablate, eval or "
        "table, and no record with its command or commands"
    )


def _shots_inside(folder: Path) -> list[Shot]:
    """The pictures of the runs that an evaluation or a table drew, the dense ones first."""
    runs = [manifest.parent for manifest in folder.glob(f"*/{MANIFEST}")]
    runs.sort(key=lambda run: (run.name != "dense", run.name))
    return [shot for run in runs for shot in shots_of(run, read_rows(run))]
