"""What a generation run will draw and where."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from infinity.errors import UserError
from infinity.io.prompts import PromptRow, derived_seed, read_prompts
from infinity.io.rows import image_name
from stepvar_patch.experiments.schema import GenerateConfig, check_device

logger = logging.getLogger(__name__)


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


def resolve_device(device: str | None, dtype: str | None) -> tuple[str, str]:
    """The device and dtype that a run uses when the config leaves them open.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:N`` or ``None``.
        dtype: ``float32``, ``bfloat16`` or ``None``.

    Returns:
        Device and dtype.

    Raises:
        UserError: no name of a device, or a GPU that is not there.
    """
    import torch

    try:
        check_device(device or "cpu")
    except ValueError as error:
        raise UserError(f"device = {device!r} {error}") from error
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device is None:
        device = "cuda" if gpus else "cpu"
    elif device != "cpu" and int(device.partition(":")[2] or 0) >= gpus:
        raise UserError(f"device = {device!r} is not available; this machine shows {gpus} GPUs")
    if device == "cpu" and dtype == "bfloat16" and not _computes_bfloat16():
        logger.warning(
            "dtype = bfloat16 on a CPU without instructions for it takes many times longer than "
            "float32; give dtype=float32"
        )
    return device, dtype or ("float32" if device == "cpu" else "bfloat16")


def _computes_bfloat16() -> bool:
    """Whether the CPU multiplies matrices in bfloat16 itself; True where torch cannot tell."""
    import torch

    tell = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return tell is None or not torch.backends.mkldnn.is_available() or bool(tell())
