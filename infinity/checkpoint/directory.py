"""Model directories: ``manifest.json`` with configuration and checksums beside the shards."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import pydantic
from torch import Tensor

from infinity.checkpoint.int8 import SCALE_SUFFIX, dequantize_rows
from infinity.checkpoint.lazy import LazyState, safetensors_state
from infinity.checkpoint.official import check_relative
from infinity.config import ModelConfig
from infinity.errors import Mistakes, UserError, collecting
from infinity.io.files import file_sha256
from infinity.io.strict_json import parse_json

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
TEXT_ENCODER = "text_encoder"

Component = Literal["transformer", "tokenizer"]


def load_model_config(folder: Path) -> ModelConfig:
    """The configuration in a model directory's manifest.

    Raises:
        UserError: no manifest, not readable, of another format version, or with wrong values.
    """
    manifest = _read_manifest(folder)
    try:
        config = pydantic.TypeAdapter(ModelConfig).validate_python(manifest["config"])
    except pydantic.ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(('config', *map(str, e['loc'])))}: {e['msg'].removeprefix('Value error, ')}"
            for e in error.errors()
        )
        raise UserError(f"{folder / MANIFEST}: {wrong}") from error
    if unknown := _unknown_keys(manifest["config"], dataclasses.asdict(config), "config"):
        raise UserError(f"{folder / MANIFEST}: unknown {', '.join(unknown)}")
    return config


def read_state(folder: Path, component: Component) -> LazyState:
    """A component's tensors, int8 rows dequantised, after its shards' checksums were verified.

    Raises:
        UserError: no readable manifest, or it lists no shard of the component.
        Mistakes: every shard that is missing, damaged or outside the folder.
    """
    shards = [
        name for name, entry in listed_files(folder).items() if entry["component"] == component
    ]
    if not shards:
        raise UserError(f"{folder / MANIFEST}: lists no file of component {component}")
    stored = safetensors_state(verified(folder, sorted(shards)))
    shapes = stored.shapes

    def read(key: str) -> Tensor:
        scale = key + SCALE_SUFFIX
        value = stored[key]
        return dequantize_rows(value, stored[scale]) if scale in shapes else value

    return LazyState({k: s for k, s in shapes.items() if not k.endswith(SCALE_SUFFIX)}, read)


def text_encoder_folder(folder: Path) -> Path | None:
    """The text encoder that a model directory ships, its files verified; None if it has none.

    Raises:
        UserError: one of its files leads out of the folder.
        Mistakes: every file of it that is missing or damaged.
    """
    names = [n for n, entry in listed_files(folder).items() if entry["component"] == TEXT_ENCODER]
    verified(folder, names)
    inside = folder / TEXT_ENCODER
    for path in inside.iterdir() if names else ():
        if not path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{path}: leads out of the model directory")
    return inside if names else None


def digest(path: Path) -> str:
    """sha256 that identifies the weights: of a model directory from its manifest, else by content.

    Raises:
        UserError: unreadable.
    """
    if not (path / MANIFEST).exists():
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        return hashlib.sha256("".join(map(file_sha256, files)).encode()).hexdigest()
    return content_digest(_read_manifest(path)["config"], listed_files(path))


def source_digest(path: Path) -> str | None:
    """Digest of the official files that a directory was converted from without changing a value;
    None if there are none.

    This is a claim of its manifest, which is forgotten with any change to its config or files: it
    tells where to look, and only `digest` tells what is there.

    Raises:
        UserError: unreadable.
    """
    if not (path / MANIFEST).exists():
        return None
    source = _read_manifest(path).get("source")
    if not isinstance(source, dict) or source.get("directory") != digest(path):
        return None
    claimed = source.get("digest")
    return claimed if isinstance(claimed, str) else None


def source_of(folder: Path) -> dict[str, str]:
    """What a model directory's manifest says of where it comes from; empty if it says nothing.

    Raises:
        UserError: unreadable.
    """
    source = _read_manifest(folder).get("source")
    return {key: str(value) for key, value in source.items()} if isinstance(source, dict) else {}


def content_digest(config: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]) -> str:
    """sha256 over the configuration and the checksums that a manifest lists."""
    checksums = {name: entry["sha256"] for name, entry in files.items()}
    content = {"config": config, "files": checksums}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def official_digest(transformer: Path, tokenizer: Path, config: ModelConfig) -> str:
    """sha256 that identifies a pair of official files and what is known of them but the name.

    Raises:
        UserError: unreadable.
    """
    known = {name: v for name, v in dataclasses.asdict(config).items() if name != "name"}
    content = {"config": known, "files": [digest(transformer), digest(tokenizer)]}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_listed(folder: Path) -> None:
    """Makes sure that every file of a model directory is there in its full size; reads none.

    Raises:
        Mistakes: every file that is not.
    """
    found: list[str] = []
    for name, entry in listed_files(folder).items():
        with collecting(found):
            _present(folder, name, entry)
    if found:
        raise Mistakes(found)


def verified(folder: Path, names: Iterable[str]) -> list[Path]:
    """Listed files, after comparing sizes and checksums with the manifest.

    Raises:
        Mistakes: every one that is missing, outside the folder, or changed.
    """
    listed, paths = listed_files(folder), []
    found: list[str] = []
    for name in names:
        with collecting(found):
            path = _present(folder, name, listed[name])
            if file_sha256(path) != listed[name]["sha256"]:
                raise UserError(
                    f"{path}: damaged, its sha256 differs from {MANIFEST}; fetch it again"
                )
            paths.append(path)
    if found:
        raise Mistakes(found)
    return paths


def _present(folder: Path, name: str, entry: Mapping[str, Any]) -> Path:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{folder / MANIFEST}: file {name} lies outside the folder")
    if not path.is_file():
        raise UserError(f"{path}: missing, though {MANIFEST} lists it")
    if (size := path.stat().st_size) != entry["bytes"]:
        raise UserError(f"{path}: has {size} bytes instead of {entry['bytes']}; fetch it again")
    return path


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = parse_json(path.read_text(encoding="utf-8"), finite=False)
    except FileNotFoundError as error:
        raise UserError(f"{folder}: no model directory, it has no {MANIFEST}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format_version") != FORMAT_VERSION:
        found = manifest.get("format_version") if isinstance(manifest, dict) else None
        raise UserError(f"{path}: format_version {found!r} must be {FORMAT_VERSION}")
    for field in ("config", "files"):
        if not isinstance(manifest.get(field), dict):
            raise UserError(f"{path}: field {field} must be an object")
    return manifest


def listed_files(folder: Path) -> dict[str, dict[str, Any]]:
    """The manifest's entries by file name: sha256, bytes and component.

    Raises:
        UserError: no readable manifest, or an entry that is incomplete or outside the folder.
    """
    files, path = _read_manifest(folder)["files"], folder / MANIFEST
    kinds = {"sha256": str, "bytes": int, "component": str}
    for name, entry in files.items():
        check_relative(name, path)
        if not isinstance(entry, dict) or any(
            not isinstance(entry.get(field), kind) for field, kind in kinds.items()
        ):
            raise UserError(f"{path}: files.{name} must have sha256, bytes and component")
    return files


def _unknown_keys(given: Any, known: Any, where: str) -> list[str]:
    if not isinstance(given, dict) or not isinstance(known, dict):
        return []
    unknown = [f"{where}.{key}" for key in given if key not in known]
    for key in given.keys() & known.keys():
        unknown += _unknown_keys(given[key], known[key], f"{where}.{key}")
    return unknown
