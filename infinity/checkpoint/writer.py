"""Writes model directories, whole or not at all."""

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from infinity.checkpoint.directory import (
    FORMAT_VERSION,
    MANIFEST,
    TEXT_ENCODER,
    content_digest,
    listed_files,
)
from infinity.checkpoint.int8 import compress_state
from infinity.checkpoint.load import is_finite, refuse_broken
from infinity.config import ModelConfig
from infinity.errors import Mistakes, UserError, collecting
from infinity.io.files import check_writable, file_sha256

DEFAULT_SHARD_BYTES = 4 << 30

_HEADER_BYTES = 128
"""Room that a tensor's entry takes in a shard's header, besides its name."""

_ENCODER_SUFFIXES = {".json", ".txt", ".model", ".safetensors", ".md"}


def save_model_directory(
    folder: Path,
    config: ModelConfig,
    transformer_state: Mapping[str, Tensor],
    tokenizer_state: Mapping[str, Tensor],
    *,
    int8: bool = False,
    dtype: torch.dtype | None = None,
    text_encoder_dir: Path | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    source: Mapping[str, str] | None = None,
    source_digest: str | None = None,
    replace: bool = False,
) -> None:
    """Writes a model directory; it appears complete or not at all.

    Args:
        folder: where; must not exist yet, unless it is empty or ``replace`` is given.
        config: the model's configuration.
        transformer_state: plain or lazy state dict, read one tensor at a time.
        tokenizer_state: likewise.
        int8: store matrices as int8 rows and everything else as fp16.
        dtype: without ``int8``, dtype of the transformer's block matrices; as they are if None.
            Other tensors keep their dtype.
        text_encoder_dir: a ``transformers`` folder to copy; its weights must be safetensors.
        max_shard_bytes: size limit of a shard, unless one tensor alone is larger.
        source: notes on the origin, kept in the manifest.
        source_digest: of the same weights where they came from, kept in the manifest.
        replace: replace an existing model directory; files it does not list (a model card) stay.

    Raises:
        UserError: ``folder`` is in the way or cannot be written, the text encoder folder is
            unusable, or a tensor holds NaN or infinity.
    """
    check_places(folder, text_encoder_dir, replace=replace)
    folder = folder.resolve()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from error
    try:
        components = {"transformer": transformer_state, "tokenizer": tokenizer_state}
        owners: dict[str, str] = {}
        for component, state in components.items():
            shards = _shards(_finite(state, component), int8, dtype, max_shard_bytes)
            for index, shard in enumerate(shards, start=1):
                name = f"{component}-{index:05d}.safetensors"
                save_file(shard, work / name)
                (work / name).chmod(0o644)
                owners[name] = component
        if text_encoder_dir is not None:
            owners |= dict.fromkeys(_copy_encoder(text_encoder_dir, work), TEXT_ENCODER)
        files = {
            name: {
                "sha256": file_sha256(work / name),
                "bytes": (work / name).stat().st_size,
                "component": component,
            }
            for name, component in owners.items()
        }
        shapes = dataclasses.asdict(config)
        origin = dict(source or {})
        if source_digest is not None:
            origin |= {"digest": source_digest, "directory": content_digest(shapes, files)}
        manifest = {
            "format_version": FORMAT_VERSION,
            "config": shapes,
            "files": files,
            "source": origin,
        }
        (work / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        work.chmod(0o755)
        _move_into_place(work, folder)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder}: cannot be written ({error})") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def check_places(folder: Path, text_encoder_dir: Path | None, *, replace: bool = False) -> None:
    """Makes sure that a model directory can be written, before any of it is.

    Args:
        folder: see `save_model_directory`.
        text_encoder_dir: likewise.
        replace: likewise.

    Raises:
        Mistakes: the folder is in the way or cannot be written; no usable text encoder.
    """
    found: list[str] = []
    if folder.exists() and not (folder.is_dir() and _may_replace(folder, replace)):
        found.append(f"{folder}: already exists; choose another folder or remove it")
    else:
        with collecting(found):
            check_writable(folder.absolute().parent, "output")
    source = text_encoder_dir
    if source is not None and not (
        (source / "config.json").is_file() and any(source.glob("*.safetensors"))
    ):
        found.append(f"{source}: text encoder folder must hold config.json and .safetensors")
    if found:
        raise Mistakes(found)


def _may_replace(folder: Path, replace: bool) -> bool:
    return not any(folder.iterdir()) or (replace and (folder / MANIFEST).exists())


def _move_into_place(work: Path, folder: Path) -> None:
    if not folder.exists() or not any(folder.iterdir()):
        work.replace(folder)
        return
    listed = {*listed_files(folder), MANIFEST}
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if path.is_file() and name.as_posix() not in listed and not (work / name).exists():
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, work / name)
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    folder.replace(old)
    work.replace(folder)
    shutil.rmtree(old)


def _finite(state: Mapping[str, Tensor], component: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor, one at a time, on the CPU."""
    for key in state:
        value = state[key].detach().cpu()
        refuse_broken([] if is_finite(value) else [key], component)
        yield key, value


def _shards(
    state: Iterator[tuple[str, Tensor]], int8: bool, dtype: torch.dtype | None, max_bytes: int
) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for key, value in state:
        if int8:
            stored = compress_state({key: value})
        elif dtype is not None and _is_block_matrix(key, value):
            stored = {key: value.to(dtype)}
        else:
            stored = {key: value}
        stored = {name: tensor.clone().contiguous() for name, tensor in stored.items()}
        added = sum(tensor.nbytes + len(name) + _HEADER_BYTES for name, tensor in stored.items())
        if shard and size + added > max_bytes:
            yield shard
            shard, size = {}, 0
        shard |= stored
        size += added
    if shard:
        yield shard


def _is_block_matrix(key: str, value: Tensor) -> bool:
    return key.startswith("block") and key.endswith(".weight") and value.ndim == 2


def _copy_encoder(source: Path, work: Path) -> list[str]:
    names = []
    for path in sorted(source.iterdir()):
        if path.is_file() and (
            path.suffix in _ENCODER_SUFFIXES or path.name in ("LICENSE", "NOTICE")
        ):
            (work / TEXT_ENCODER).mkdir(exist_ok=True)
            shutil.copyfile(path, work / TEXT_ENCODER / path.name)
            names.append(f"{TEXT_ENCODER}/{path.name}")
    return names
