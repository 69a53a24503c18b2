"""Tensors of checkpoint files, read one at a time: loading needs little more than the model."""

import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from infinity.errors import UserError

Shape = tuple[int, ...]

_WINDOW_BYTES = 64 << 20
"""Files are mapped anew after this many bytes: pages already copied would count as used memory."""


class LazyState(Mapping[str, Tensor]):
    """A state dict whose tensors are read on access and whose shapes are known beforehand."""

    def __init__(self, shapes: Mapping[str, Shape], read: Callable[[str], Tensor]) -> None:
        self._shapes = dict(shapes)
        self._read = read

    def __getitem__(self, key: str) -> Tensor:
        if key not in self._shapes:
            raise KeyError(key)
        return self._read(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shape of every tensor, without reading any."""
        return dict(self._shapes)

    def renamed(self, sources: Mapping[str, str]) -> "LazyState":
        """The tensors ``sources.values()`` under the names ``sources.keys()``."""
        shapes = {new: self._shapes[old] for new, old in sources.items()}
        return LazyState(shapes, lambda key: self._read(sources[key]))


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    """Shape of every tensor of a lazy or plain state dict."""
    if isinstance(tensors, LazyState):
        return tensors.shapes
    return {key: tuple(value.shape) for key, value in tensors.items()}


class _SafetensorsReader:
    def __init__(self, owners: Mapping[str, Path]) -> None:
        self._owners = owners
        self._open: dict[Path, Any] = {}
        self._mapped_bytes = 0

    def __call__(self, key: str) -> Tensor:
        path = self._owners[key]
        if self._mapped_bytes > _WINDOW_BYTES:
            self._open.clear()
            self._mapped_bytes = 0
        if path not in self._open:
            self._open[path] = open_safetensors(path)
        tensor = self._open[path].get_tensor(key)
        self._mapped_bytes += tensor.nbytes
        return tensor


def open_safetensors(path: Path) -> Any:
    """A handle of safetensors' ``safe_open``.

    Raises:
        UserError: the file is missing, unreadable or not a whole safetensors file.
    """
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error


def safetensors_state(files: Sequence[Path]) -> LazyState:
    """All tensors of ``files``.

    Raises:
        UserError: a file is unreadable or damaged, or two files hold the same key.
    """
    owners: dict[str, Path] = {}
    shapes: dict[str, Shape] = {}
    for path in files:
        handle = open_safetensors(path)
        for key in handle.keys():  # noqa: SIM118 (a safe_open handle is no mapping)
            if key in owners:
                raise UserError(f"{path}: tensor {key} is also in {owners[key].name}")
            owners[key] = path
            shapes[key] = tuple(handle.get_slice(key).get_shape())
    return LazyState(shapes, _SafetensorsReader(owners))


def load_pickle(path: Path) -> dict[str, Any]:
    """The dict in a ``torch.save`` file, tensors mapped from disk; never runs code from the file.

    Raises:
        UserError: the file is missing or damaged, holds no dict, or needs unpickling of code.
    """
    try:
        with path.open("rb"):
            mapped = zipfile.is_zipfile(path)
        with warnings.catch_warnings(action="ignore"):  # torch remarks upon unusual protocols
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped or None)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: refused, because it is damaged or holds more than tensors and plain values, "
            "and unpickling anything else could run code"
        ) from error
    except Exception as error:  # damaged bytes make the parsers raise almost anything
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path}: not a readable checkpoint ({reason})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a dict of tensors")
    return content


class _PickleReader:
    def __init__(self, path: Path, select: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self._path, self._select = path, select
        self._mapped_bytes = 0
        self.tensors = self._load()

    def _load(self) -> dict[str, Tensor]:
        chosen = self._select(load_pickle(self._path))
        return {key: value for key, value in chosen.items() if isinstance(value, Tensor)}

    def __call__(self, key: str) -> Tensor:
        if self._mapped_bytes > _WINDOW_BYTES:
            self.tensors = self._load()
            self._mapped_bytes = 0
        tensor = self.tensors[key]
        self._mapped_bytes += tensor.nbytes
        return tensor


def pickle_state(
    path: Path, select: Callable[[dict[str, Any]], dict[str, Any]], what: str
) -> LazyState:
    """The tensors of the part of a ``torch.save`` file that ``select`` picks out of its dict.

    Args:
        path: the file.
        select: from the file's dict to the dict of tensors in it.
        what: what the file should be, for messages.

    Raises:
        UserError: see :func:`load_pickle`; or the part holds no tensor.
    """
    reader = _PickleReader(path, select)
    if not reader.tensors:
        raise UserError(f"{path}: not {what} checkpoint: no tensors where they should be")
    return LazyState(shapes_of(reader.tensors), reader)
