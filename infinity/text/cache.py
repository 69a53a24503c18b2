"""Text features on disk: prompts are encoded first, then the encoder makes room."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from infinity.errors import UserError
from infinity.io.files import file_sha256, make_folder, write_atomic
from infinity.text.base import TextEncoder, TextFeatures

_DIGEST_BYTES = 32


def encoder_identity(folder: Path, dtype: torch.dtype, device: str, max_tokens: int) -> str:
    """SHA-256 over all that decides an encoder's features: its files, and what runs them how.

    Args:
        folder: of the text encoder.
        dtype: that it computes in.
        device: kind of device that it runs on.
        max_tokens: that it reads of a prompt.

    Raises:
        UserError: a file is unreadable.
    """
    versions = torch.__version__, version("transformers")
    total = hashlib.sha256(json.dumps([str(dtype), device, max_tokens, *versions]).encode())
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        total.update(json.dumps([path.name, file_sha256(path)]).encode())
    return total.hexdigest()


class TextCache:
    """Features by prompt in files of their own, each behind a checksum; any number of processes
    may share the folder.

    Args:
        folder: created when missing.
        identity: of the encoder; another encoder's features lie elsewhere.

    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self._folder = folder / identity[:32]
        make_folder(self._folder)

    def get(self, prompt: str) -> Float[Tensor, "n width"] | None:
        """The features of a prompt; None if they are not there or damaged."""
        try:
            data = self._path(prompt).read_bytes()
        except OSError:
            return None
        content = data[_DIGEST_BYTES:]
        if hashlib.sha256(content).digest() != data[:_DIGEST_BYTES]:
            return None
        try:
            return load(content)["rows"].float()
        except (SafetensorError, KeyError):
            return None

    def put(self, prompt: str, rows: Float[Tensor, "n width"]) -> None:
        """Keeps the features of a prompt, in half the bytes when bfloat16 holds them exactly.

        Raises:
            UserError: the disk is full.
        """
        rows = rows.detach().cpu()
        short = rows.bfloat16()
        content = save({"rows": (short if torch.equal(short.float(), rows) else rows).contiguous()})
        path = self._path(prompt)
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, lambda file: file.write(hashlib.sha256(content).digest() + content))

    def missing(self, prompts: Iterable[str]) -> Iterable[str]:
        """Those of ``prompts`` that have no features yet, one after another."""
        return (prompt for prompt in prompts if self.get(prompt) is None)

    def _path(self, prompt: str) -> Path:
        name = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()
        return self._folder / name[:2] / f"{name[2:]}.features"


class CachedTextEncoder:
    """A text encoder that only looks up what was encoded before.

    Implements :class:`infinity.text.base.TextEncoder`.
    """

    def __init__(self, cache: TextCache, *, width: int, max_tokens: int) -> None:
        self._cache = cache
        self.width, self.max_tokens = width, max_tokens

    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        """Features of ``prompts``.

        Raises:
            UserError: those of a prompt are not there, or no longer.
        """
        return TextFeatures.stack([self._one(prompt) for prompt in prompts])

    def _one(self, prompt: str) -> Float[Tensor, "n width"]:
        rows = self._cache.get(prompt)
        if rows is None or rows.ndim != 2 or rows.shape[1] != self.width:
            raise UserError(
                f"text cache: the features of {prompt[:60]!r} are missing or damaged; "
                "run the same command again"
            )
        return rows


def fill(cache: TextCache, encoder: TextEncoder, prompts: Iterable[str]) -> int:
    """Encodes the prompts that a cache lacks, and says how many those were.

    Raises:
        UserError: the disk is full.
    """
    count = 0
    for prompt in cache.missing(prompts):
        cache.put(prompt, encoder.encode([prompt]).rows)
        count += 1
    return count
