"""The config that a run was begun with, and whether another one may go on in its folder."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from infinity.errors import UserError
from infinity.io.small_yaml import read_small_yaml

CONFIG = "config.yaml"


def continued(
    folder: Path,
    config: Mapping[str, Any],
    fixed: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    defaults: Mapping[str, Any],
    *,
    begun: bool,
    unknown: Iterable[str] = (),
) -> dict[str, Any]:
    """The config of a run that goes on in a folder, or begins there.

    Args:
        folder: of the run; may be missing.
        config: of the run as JSON values.
        fixed: picks the part of a config that must stay as it was.
        defaults: for fields that the config leaves ``None``, unless the run was begun with others.
        begun: whether it made anything; what made nothing binds nobody.
        unknown: fields that are not compared.

    Returns:
        The config with the defaults filled in.

    Raises:
        UserError: not a run folder, or a run that differs in a fixed field.
    """
    before = _earlier(folder, config, begun=begun)
    now = dict(config)
    free = {name for name in defaults if before is None or before.get(name) is None}
    for name, value in defaults.items():
        if now.get(name) is None:
            now[name] = value if before is None or name in free else before[name]
    if before is None:
        return now
    was, wanted = fixed(before), fixed(json.loads(json.dumps(now)))
    changed = [
        name
        for name in {**wanted, **was}
        if was.get(name) != wanted.get(name) and name not in {*free, *unknown}
    ]
    if changed:
        what = "; ".join(
            f"{name} was {json.dumps(was.get(name))}, now {json.dumps(wanted.get(name))}"
            for name in changed
        )
        raise UserError(
            f"output: {folder} holds a run with other settings ({what}); "
            "choose another folder or the same settings"
        )
    return now


def _earlier(folder: Path, config: Mapping[str, Any], *, begun: bool) -> dict[str, Any] | None:
    """The config that the run was begun with; None in a new folder."""
    path = folder / CONFIG
    if not path.exists():
        if begun:
            raise UserError(
                f"output: {folder} has the manifest of a run but no {CONFIG}; choose another folder"
            )
        return None
    try:
        before = yaml.safe_load(read_small_yaml(path))
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError, UserError) as error:
        raise UserError(f"output: {path} cannot be read; choose another folder") from error
    if not isinstance(before, dict) or not before.keys() & config.keys():
        raise UserError(f"output: {path} is not the config of a run; choose another folder")
    return before if begun else None
