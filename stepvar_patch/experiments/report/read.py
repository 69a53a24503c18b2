"""Tells what kind of result a path holds, and reads it."""

from pathlib import Path

from infinity.errors import UserError
from infinity.io.manifest import MANIFEST
from stepvar_patch.experiments.report.ablation import is_ablation, read_ablation
from stepvar_patch.experiments.report.attention import is_attention, read_attention
from stepvar_patch.experiments.report.bench import is_bench, read_bench
from stepvar_patch.experiments.report.evaluation import is_evaluation, read_evaluation
from stepvar_patch.experiments.report.files import read_object
from stepvar_patch.experiments.report.model import Source
from stepvar_patch.experiments.report.record import is_record, read_record
from stepvar_patch.experiments.report.run_folder import read_run

_TABLE = "table.json"
_EVALUATION = "eval.json"
_KINDS = (
    (is_bench, read_bench),
    (is_attention, read_attention),
    (is_ablation, read_ablation),
    (is_evaluation, read_evaluation),
    (is_record, read_record),
)


def read_source(path: Path) -> Source:
    """What a folder or file of results has to show.

    Args:
        path: a folder of ``stepvar ablate``, ``eval`` or ``generate``, or a JSON file of results.

    Raises:
        UserError: missing, damaged, or of no kind that a report knows.
    """
    if path.is_dir():
        for name in (_TABLE, _EVALUATION):
            if (path / name).is_file():
                return read_source(path / name)
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
        f"{path} is no result that a report knows: no file of stepvar bench, ablate or eval, "
        "and no record with its command or commands"
    )
