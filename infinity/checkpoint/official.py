"""The released files, read where they lie."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import nn

from infinity.checkpoint.infer import infer_model, infer_tokenizer, infer_transformer, paired
from infinity.checkpoint.lazy import LazyState, pickle_state, safetensors_state
from infinity.checkpoint.load import shapes_of_module
from infinity.checkpoint.rules import match_keys
from infinity.config import ModelConfig
from infinity.errors import Mistakes, UserError, collecting
from infinity.io.strict_json import parse_json
from infinity.tokenizer.autoencoder import BSQTokenizer
from infinity.transformer.model import InfinityTransformer

INDEX = "model.safetensors.index.json"
MAX_PATH_BYTES = 240
"""Longest file name that a manifest or index may give; every file system takes it."""


@dataclass(frozen=True, kw_only=True)
class OfficialModel:
    """A fitting transformer and tokenizer; tensors under the names that the files use."""

    config: ModelConfig
    transformer: LazyState
    tokenizer: LazyState


def open_official(transformer: Path, tokenizer: Path, *, name: str | None = None) -> OfficialModel:
    """A released (or likewise stored) model.

    Args:
        transformer: slim or training ``.pth``, ``.safetensors``, or a folder of safetensors shards.
        tokenizer: ``.pth`` or ``.safetensors``.
        name: name of the model; a preset's name fixes which released model it must be.

    Raises:
        UserError: a file is unreadable, unsafe or of another kind; every missing, unexpected and
            misshapen key of both; or the two do not fit.
    """
    found: list[str] = []
    with collecting(found):
        transformer_state = read_transformer(transformer)
    with collecting(found):
        tokenizer_state = read_tokenizer(tokenizer)
    if found:
        raise Mistakes(found)
    with collecting(found):
        config = infer_transformer(transformer_state.shapes, transformer)
        _check_keys(transformer_state, InfinityTransformer, config, transformer)
    with collecting(found):
        tokenizer_config = infer_tokenizer(tokenizer_state.shapes, tokenizer)
        _check_keys(tokenizer_state, BSQTokenizer, tokenizer_config, tokenizer)
    if found:
        raise Mistakes(found)
    config = paired(config, transformer, tokenizer_config, tokenizer)
    model = infer_model(config, transformer, tokenizer_config, tokenizer, name)
    return OfficialModel(config=model, transformer=transformer_state, tokenizer=tokenizer_state)


def _check_keys(
    state: LazyState, kind: Callable[[Any], nn.Module], config: Any, path: Path
) -> None:
    with torch.device("meta"):
        module = kind(config)
    match_keys(state.shapes, shapes_of_module(module), str(path))


def read_transformer(path: Path) -> LazyState:
    """The transformer's tensors in any of the released containers.

    Raises:
        UserError: unreadable, unsafe, or without the weights asked for.
    """
    if path.is_dir():
        return safetensors_state(shard_files(path))
    if path.suffix == ".safetensors":
        return safetensors_state([path])

    def select(content: dict[str, Any]) -> dict[str, Any]:
        if "trainer" not in content:
            return content
        trainer = content["trainer"]
        if not isinstance(trainer, dict) or not isinstance(trainer.get("gpt_fsdp"), dict):
            raise UserError(f"{path}: training checkpoint without trainer.gpt_fsdp")
        return trainer["gpt_fsdp"]

    return pickle_state(path, select, "an Infinity transformer")


def read_tokenizer(path: Path) -> LazyState:
    """The tokenizer's tensors: the entry ``vae`` of a ``.pth``, or a flat state dict.

    Raises:
        UserError: unreadable or unsafe.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the tokenizer's own file")
    if path.suffix == ".safetensors":
        return safetensors_state([path])

    def select(content: dict[str, Any]) -> dict[str, Any]:
        if isinstance(content.get("trainer"), dict) and "vae_local" in content["trainer"]:
            content = {"vae": content["trainer"]["vae_local"]}
        inner = content.get("vae", content)
        if not isinstance(inner, dict):
            raise UserError(f"{path}: its entry vae is no dict of tensors")
        return inner

    return pickle_state(path, select, "a tokenizer")


def shard_files(folder: Path) -> list[Path]:
    """The safetensors shards of ``folder``: those its index names, or all there are.

    Raises:
        UserError: no shards, an unreadable index, or an index that names a missing or outside file.
    """
    index = folder / INDEX
    if not index.exists():
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise UserError(f"{folder}: holds no .safetensors file")
        return files
    try:
        content = parse_json(index.read_text())
        names = sorted(set(content["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{index}: not a readable shard index ({error!r})") from error
    for name in names:
        check_relative(name, index)
        if not (folder / name).is_file():
            raise UserError(f"{index}: names the shard {name}, which is missing")
    return [folder / name for name in names]


def check_relative(name: object, source: Path) -> PurePosixPath:
    """``name`` as a path below the folder of ``source``.

    Raises:
        UserError: it is absolute, contains ``..`` or is no path.
    """
    path = PurePosixPath(name) if isinstance(name, str) else None
    if (
        path is None
        or not path.parts
        or path.is_absolute()
        or ".." in path.parts
        or "\\" in str(path)
        or not str(path).isprintable()
        or len(str(path).encode()) > MAX_PATH_BYTES
    ):
        shown = repr(name)[:120]
        raise UserError(f"{source}: file name {shown} must be a short path inside the folder")
    return path
