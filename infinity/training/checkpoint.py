"""Training state in safetensors shards of bounded size, with one small JSON index."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from infinity.errors import UserError
from infinity.io.strict_json import parse_json

INDEX = "state.json"


def save_tensors(
    folder: Path, name: str, tensors: dict[str, Tensor], shard_mib: float, half: bool
) -> list[str]:
    """Names of the files ``{name}-00001-of-0000N.safetensors`` written, each within the limit.

    Args:
        folder: created if missing.
        name: file stem.
        tensors: what to store, in order; floating tensors in fp16 with ``half``, else as they are.
        shard_mib: size limit of a file; a single larger tensor gets a file of its own.
        half: store floating tensors in fp16.
    """
    folder.mkdir(parents=True, exist_ok=True)
    limit = int(shard_mib * 2**20) - 65536
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for key, value in tensors.items():
        stored = value.detach().half() if half and value.is_floating_point() else value.detach()
        stored = stored.cpu().contiguous()
        if shards[-1] and filled + stored.nbytes > limit:
            shards.append({})
            filled = 0
        shards[-1][key] = stored
        filled += stored.nbytes
    names = [f"{name}-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for old in folder.glob(f"{name}-*-of-*.safetensors"):
        if old.name not in names:
            old.unlink()
    for shard, file in zip(shards, names, strict=True):
        save_file(shard, folder / file)
    return names


def load_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """All tensors stored under ``name``, in the dtype they were stored in.

    Raises:
        UserError: there are none, a shard is missing, or one cannot be read.
    """
    files = sorted(folder.glob(f"{name}-*-of-*.safetensors"))
    if not files:
        raise UserError(f"{folder}: no file {name}-*-of-*.safetensors here.")
    expected = int(files[0].stem.rsplit("-", 1)[-1])
    if len(files) != expected:
        raise UserError(f"{folder}: {len(files)} of {expected} shards of {name} are here.")
    out: dict[str, Tensor] = {}
    for file in files:
        try:
            out |= load_file(file)
        except SafetensorError as error:
            raise UserError(f"{file}: not a readable safetensors file ({error}).") from error
    return out


def write_index(folder: Path, content: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / (INDEX + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / INDEX)


def read_index(folder: Path) -> dict[str, Any]:
    """The JSON index of a checkpoint folder.

    Raises:
        UserError: the folder holds no readable checkpoint.
    """
    try:
        index: object = parse_json((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{folder}: no training checkpoint here ({error}).") from error
    if not isinstance(index, dict):
        raise UserError(f"{folder / INDEX}: must hold an object.")
    kinds = {
        "state": str,
        "steps": int,
        "seconds": int | float,
        "warm_steps": int,
        "ema_steps": int,
    }
    for key, kind in kinds.items():
        if not isinstance(index.get(key), kind) or isinstance(index[key], bool):
            raise UserError(f"{folder / INDEX}: {key} is missing or of the wrong kind.")
    return index


def optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Moments and step counts of every parameter, as ``{parameter name}|{state name}``."""
    names = {id(value): key for key, value in model.named_parameters()}
    return {
        f"{names[id(parameter)]}|{key}": torch.as_tensor(value)
        for group in optimizer.param_groups
        for parameter in group["params"]
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(
    model: nn.Module, optimizer: Optimizer, stored: dict[str, Tensor]
) -> None:
    """Inverse of :func:`optimizer_tensors`."""
    parameters = dict(model.named_parameters())
    for name, value in stored.items():
        key, _, field = name.rpartition("|")
        parameter = parameters[key]
        on_device = (
            value if field == "step" and not _fused(optimizer) else value.to(parameter.device)
        )
        optimizer.state[parameter][field] = on_device.clone()


def _fused(optimizer: Optimizer) -> bool:
    return bool(optimizer.param_groups[0].get("fused"))
