"""What a generation run will draw and where, checked before any weight is read."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from infinity.config import PRESETS, ModelConfig
from infinity.errors import UserError
from infinity.io.manifest import image_name
from infinity.io.prompts import PromptRow, derived_seed, read_prompts
from stepvar_patch.experiments.problems import report
from stepvar_patch.experiments.pruning import policy_request, resolve_pruning, sampling_settings
from stepvar_patch.experiments.schema import GenerateConfig


@dataclass(frozen=True, kw_only=True)
class ImageJob:
    """One image to draw."""

    row: PromptRow
    seed: int
    negative_prompt: str | None

    @property
    def name(self) -> str:
        return image_name(self.row.id, self.seed)

    @property
    def file(self) -> str:
        return f"{self.name}.png"


def jobs(config: GenerateConfig) -> Iterator[ImageJob]:
    """The images of a run in prompt order.

    Args:
        config: of the run.

    Yields:
        ``images_per_prompt`` jobs for each row; image ``k`` of a row has the row's seed plus ``k``.

    Raises:
        UserError: a mistake in the prompt file.
    """
    for row in read_prompts(Path(config.prompts)):
        first = derived_seed(config.seed, row.id) if row.seed is None else row.seed
        negative = config.negative_prompt if row.negative_prompt is None else row.negative_prompt
        for k in range(config.images_per_prompt):
            yield ImageJob(row=row, seed=first + k, negative_prompt=negative or None)


@dataclass(frozen=True, kw_only=True)
class CheckedRun:
    """What is known of a run before weights are read.

    Attributes:
        images: of the run, finished ones included.
        digest: of the model directory; ``None`` for official files, which are hashed when loaded.
        device: where it runs.
        dtype: in which precision.
        model: its shapes.
    """

    images: int
    digest: str | None
    device: str
    dtype: str
    model: ModelConfig


def check(
    config: GenerateConfig, shape: ModelConfig | None = None, *, generating: bool = False
) -> CheckedRun:
    """Checks all of a run that can be checked without reading weights.

    Args:
        config: of the run.
        shape: stands in for the model's files, which are then not looked at.
        generating: whether it is for ``stepvar generate``, which alone saves memory.

    Returns:
        What was found.

    Raises:
        UserError: every mistake in prompts, settings, pruning or model, and a GPU that is not
            there.
    """
    found: list[str] = []
    device, dtype = "cpu", "float32"
    with _collecting(found):
        device, dtype = resolve_device(config.device, config.dtype)
    if not generating and (config.memory, config.quantize) != ("auto", None):
        found.append(
            "memory and quantize are for stepvar generate; here they must be auto and null"
        )
    if config.quantize is not None and find_spec("torchao") is None:
        found.append("quantize: int8 needs torchao, which is not installed; pip install torchao")
    images = 0
    with _collecting(found):
        images = sum(1 for _ in jobs(config))
    identity, model = None, shape
    if shape is None:
        with _collecting(found):
            identity, model = _identify(config)
    if model is not None and config.shape is not None:
        with _collecting(found):
            _check_shape(config, model)
    if model is not None:
        with _collecting(found):
            schedule = policy_request(model, config).schedule
            sampling_settings(config, model, schedule)
        with _collecting(found):
            resolve_pruning(config, model)
    if found or model is None:
        raise UserError(report(list(dict.fromkeys(found))))
    return CheckedRun(images=images, digest=identity, device=device, dtype=dtype, model=model)


@contextmanager
def _collecting(found: list[str]) -> Iterator[None]:
    """Notes a user's mistake instead of stopping at it."""
    try:
        yield
    except UserError as error:
        found.append(str(error))


def _check_shape(config: GenerateConfig, model: ModelConfig) -> None:
    wanted = PRESETS[str(config.shape)]
    pairs: list[tuple[Any, Any]] = [
        (wanted.transformer, model.transformer),
        (wanted.tokenizer, model.tokenizer),
    ]
    other = [
        f"{name} {getattr(found, name)} instead of {getattr(asked, name)}"
        for asked, found in pairs
        for name in asdict(asked)
        if getattr(asked, name) != getattr(found, name)
    ]
    if other:
        raise UserError(
            f"model: {config.model} is no {config.shape}, which shape asks for: it has "
            f"{', '.join(other)}; give the right files, or shape=null"
        )


def _identify(config: GenerateConfig) -> tuple[str | None, ModelConfig]:
    """Digest of the model directory, or None for official files, and the model's shapes."""
    from infinity.checkpoint import digest, load_model_config, open_official

    path = Path(config.model)
    if config.tokenizer is not None:
        for name, file in (("model", path), ("tokenizer", Path(config.tokenizer))):
            if not file.exists():
                raise UserError(f"{name}: {file} does not exist")
        return None, open_official(path, Path(config.tokenizer)).config
    if not path.is_dir():
        raise UserError(
            f"model: {path} is not a folder; give a model directory, or an official transformer "
            "with its tokenizer=FILE"
        )
    return digest(path), load_model_config(path)


def resolve_device(device: str | None, dtype: str | None) -> tuple[str, str]:
    """The device and dtype that a run uses when the config leaves them open.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``None``.
        dtype: ``float32``, ``bfloat16`` or ``None``.

    Returns:
        Device and dtype.

    Raises:
        UserError: a GPU is asked for that is not there.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device is None:
        device = "cuda" if gpus else "cpu"
    elif device != "cpu" and int(device.partition(":")[2] or 0) >= gpus:
        raise UserError(f"device = {device!r} is not available; this machine shows {gpus} GPUs")
    return device, dtype or ("float32" if device == "cpu" else "bfloat16")
