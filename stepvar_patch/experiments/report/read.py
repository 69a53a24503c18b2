"""Tells what kind of result a path holds, and reads it."""

from pathlib import Path

from infinity.errors import UserError
from infinity.io.manifest import MANIFEST
from stepvar_patch.experiments.report.ablation import is_ablation, read_ablation
from stepvar_patch.experiments.report.bench import is_bench, read_bench
from stepvar_patch.experiments.report.files import read_object
from stepvar_patch.experiments.report.model import Source
from stepvar_patch.experiments.report.record import is_record, read_record
from stepvar_patch.experiments.report.run_folder import read_run

_TABLE = "table.json"
_KINDS = ((is_bench, read_bench), (is_ablation, read_ablation), (is_record, read_record))


def read_source(path: Path) -> Source:
    """What a folder or file of results has to show.

    Args:
        path: a folder of ``stepvar ablate`` or ``stepvar generate``, or a JSON file of results.

    Raises:
        UserError: missing, damaged, or of no kind that a report knows.
    """
    if path.is_dir():
        if (path / _TABLE).is_file():
            return read_source(path / _TABLE)
        if (path / MANIFEST).is_file():
            return read_run(path)
        raise UserError(f"{path} holds neither {_TABLE} nor {MANIFEST}; give a folder of results")
    if path.name == MANIFEST:
        return read_run(path.parent)
    value = read_object(path)
    for is_kind, read in _KINDS:
        if is_kind(value):
            return read(path, value)
    raise UserError(
        f"{path} is no result that a report knows: no file of stepvar bench, no table.json of "
        "stepvar ablate, and no record with what and command or commands"
    )
