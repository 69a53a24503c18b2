"""What a pipeline is loaded from: a model directory or official files, on a device, in a dtype."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from infinity.checkpoint import (
    digest,
    load_model_config,
    official_digest,
    open_official,
    read_state,
    text_encoder_folder,
)
from infinity.checkpoint.directory import MANIFEST, TEXT_ENCODER, Component, listed_files
from infinity.config import ModelConfig
from infinity.errors import Mistakes, UserError, collecting


def open_model(
    path: Path, tokenizer: str | Path | None
) -> tuple[ModelConfig, dict[str, Mapping[str, Tensor]], str]:
    """Config, state dicts by component, and digest of a model directory or of official files.

    Raises:
        UserError: of another model, or no model.
        Mistakes: every file that is missing or corrupt.
    """
    if tokenizer is None:
        if path.suffix in (".pth", ".safetensors"):
            raise UserError(f"{path}: an official transformer file needs tokenizer=FILE beside it")
        config = load_model_config(path)
        states: dict[str, Mapping[str, Tensor]] = {}
        found: list[str] = []
        for component in get_args(Component):
            with collecting(found):
                states[component] = read_state(path, component)
        if found:
            raise Mistakes(found)
        return config, states, digest(path)
    official = open_official(path, Path(tokenizer))
    states = {"transformer": official.transformer, "tokenizer": official.tokenizer}
    return official.config, states, official_digest(path, Path(tokenizer), official.config)


def own_text_encoder(path: Path, config: ModelConfig) -> Path:
    """The text encoder inside a model directory, its files verified.

    Raises:
        UserError: there is none, or it is damaged.
    """
    folder = text_encoder_folder(path) if has_text_encoder(path) else None
    if folder is None:
        raise UserError(no_text_encoder(path, config))
    return folder


def has_text_encoder(path: Path) -> bool:
    """Whether ``path`` is a model directory that lists a text encoder.

    Raises:
        UserError: an unreadable manifest.
    """
    if not (path / MANIFEST).exists():
        return False
    return any(entry["component"] == TEXT_ENCODER for entry in listed_files(path).values())


def no_text_encoder(path: Path, config: ModelConfig) -> str:
    """The sentence for a model that has no text encoder of its own."""
    kind = "a local copy of google/flan-t5-xl" if config.text_encoder.kind == "t5" else "MiniLM"
    return f"{path} holds no text encoder; give text_encoder=FOLDER ({kind}) or convert with one"


def resolve_device(name: str | None) -> torch.device:
    """The named device; a GPU if there is one when no name is given.

    Raises:
        UserError: no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device is {name!r}; allowed: cpu, cuda, cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device is {name!r}; allowed: cpu, cuda, cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UserError(f"device is {name!r}, but this machine has {count} CUDA devices")
    return device


def current(device: torch.device) -> AbstractContextManager[object]:
    """Makes a GPU the current one inside: kernels are launched on that, wherever their tensors lie.

    Does nothing for a CPU.
    """
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def resolve_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """The named compute dtype; float32 on a CPU and bfloat16 on a GPU when no name is given.

    Raises:
        UserError: another name than float32 or bfloat16.
    """
    if name is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if name not in ("float32", "bfloat16"):
        raise UserError(f"dtype is {name!r}; allowed: float32, bfloat16")
    return torch.float32 if name == "float32" else torch.bfloat16
