"""What a config file may say. Frozen dataclasses are the schema; pydantic holds values to it."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import AfterValidator, ConfigDict

from infinity.config import Quantization, Resolution
from infinity.io.prompts import MAX_SEED
from stepvar_patch.experiments.loading import FROM_FILE
from stepvar_patch.experiments.pruning import STRICT, PruningSetting


def _path(text: str) -> str:
    if "\0" in text or any(len(os.fsencode(part)) > 255 for part in text.split("/")):
        raise ValueError("has a part that no file system takes; at most 255 bytes, no NUL")
    return os.path.normpath(text)


FilePath = Annotated[str, MinLen(1), AfterValidator(_path)]
Guidance = Annotated[float, Ge(0), Le(100)]
Temperature = Annotated[float, Gt(0), Le(100)]
Pixels = Annotated[int, Ge(16), Le(8192)]
Dtype = Literal["float32", "bfloat16"]


def check_device(text: str) -> str:
    """The name of a device, as far as names go.

    Raises:
        ValueError: it is none.
    """
    if re.fullmatch(r"cpu|cuda(:\d{1,2})?", text) is None:
        raise ValueError("must be cpu, cuda or cuda:N")
    return text


Device = Annotated[str, AfterValidator(check_device)]


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """The settings that, with weights, prompt and seed, decide an image; ``None`` is the model's.

    Attributes:
        guidance_scale: classifier-free guidance, one number or one per scale; 1 is off.
        temperature: of the bit logits, one number or one per scale.
        top_k: 1 takes the likelier value of each bit; 0 and anything above 1 sample it.
        top_p: a bit value less likely than ``1 - top_p`` is never drawn; 0 is off.
        guidance_layers: where guidance acts: 0 on the logits, ``-k`` after the k-th last block.
        aspect_ratio: height / width; the nearest of 15 shapes is used.
        height: of the image in pixels, given together with ``width``.
        width: of the image in pixels.
        resolution: pixel-count class, with that many scales.
        pruning: which tokens, rows and scales are computed: a policy, or a YAML file that holds
            one; ``None`` computes everything.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    guidance_scale: Guidance | Annotated[tuple[Guidance, ...], MinLen(1)] | None = None
    temperature: Temperature | Annotated[tuple[Temperature, ...], MinLen(1)] | None = None
    top_k: Annotated[int, Ge(0)] | None = None
    top_p: Annotated[float, Ge(0), Le(1)] | None = None
    guidance_layers: Annotated[tuple[Annotated[int, Le(0)], ...], MinLen(1)] | None = None
    aspect_ratio: Annotated[float, Ge(0.1), Le(10)] | None = None
    height: Pixels | None = None
    width: Pixels | None = None
    resolution: Resolution | None = None
    pruning: PruningSetting | None = field(default=None, metadata={FROM_FILE: True})

    def __post_init__(self) -> None:
        if (self.height is None) != (self.width is None):
            raise ValueError("height and width must be given together")
        if self.aspect_ratio is not None and self.height is not None:
            raise ValueError("aspect_ratio and height/width exclude each other; set one to null")


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(ImageSettings):
    """One run of ``stepvar generate``.

    Attributes:
        model: model directory; or an official transformer file or folder, used in place.
        shape: name of the released model that ``model`` must have the shapes of; ``None`` = any.
        tokenizer: the official tokenizer file that belongs to an official transformer.
        text_encoder: its folder, if it is not the model directory's own.
        prompts: ``.txt``, ``.jsonl`` or ``.csv`` file, or a folder of ``.txt``.
        output: folder of the run; an interrupted run is resumed there.
        seed: of the run; rows without a seed derive theirs from it and their id.
        images_per_prompt: images with consecutive seeds.
        batch_size: images drawn at once on a GPU; on the CPU each is drawn alone.
        negative_prompt: for rows that have none.
        device: ``cpu``, ``cuda`` or ``cuda:N``; ``None`` takes a GPU if there is one.
        dtype: ``None`` is bfloat16 on a GPU and float32 on the CPU.
        threads: on the CPU; they decide how sums are rounded, so they are recorded and kept on
            resume. ``None`` is what the run was begun with, or torch's own choice.
        memory: ``low`` encodes all prompts first, frees the encoder and decodes in bands; ``auto``
            does so when the GPU is too small for everything at once.
        text_cache: folder of the text features of ``low``; ``None`` is in the output folder, and
            cleared at the end.
        quantize: ``int8`` or ``fp8`` keeps the block matrices so while drawing (torchao).
        preview: write ``<image>.preview.png``, the image after each scale.
        contact_sheet: write ``contact_sheet.png``, thumbnails of the first images.
    """

    model: FilePath
    shape: Literal["infinity-125m", "infinity-2b", "infinity-8b", "infinity-8b-512"] | None = None
    tokenizer: FilePath | None = None
    text_encoder: FilePath | None = None
    prompts: FilePath
    output: FilePath
    seed: Annotated[int, Ge(0), Le(MAX_SEED)] = 0
    images_per_prompt: Annotated[int, Ge(1), Le(10_000)] = 1
    batch_size: Annotated[int, Ge(1), Le(1024)] = 1
    negative_prompt: str | None = None
    device: Device | None = None
    dtype: Dtype | None = None
    threads: Annotated[int, Ge(1), Le(1024)] | None = None
    memory: Literal["auto", "low"] = "auto"
    text_cache: FilePath | None = None
    quantize: Quantization | None = None
    preview: bool = False
    contact_sheet: bool = True


FREE_ON_RESUME = frozenset(
    [
        *("model", "shape", "tokenizer", "text_encoder", "prompts", "output"),
        *("images_per_prompt", "text_cache", "contact_sheet"),
    ]
)
"""Fields of `GenerateConfig` that may differ when a run is resumed: they change no finished image,
or, as weights and prompts, are compared by content."""


def fixed_on_resume(config: Mapping[str, Any]) -> dict[str, Any]:
    """What must stay as it was: on the CPU not the batch size, on GPUs not the GPU's number."""
    fixed = {name: value for name, value in config.items() if name not in FREE_ON_RESUME}
    fixed["device"] = str(config.get("device")).partition(":")[0]
    if fixed["device"] == "cpu":
        fixed.pop("batch_size", None)
        fixed["threads"] = config.get("threads")
    else:
        fixed.pop("threads", None)
    fixed.setdefault("memory", "auto")
    return fixed


@dataclass(frozen=True, kw_only=True)
class ReplayTarget:
    """How an image was computed; ``device`` is the kind alone."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    device: Literal["cpu", "cuda"]
    dtype: Dtype
    threads: Annotated[int, Ge(1), Le(1024)] | None = None
    quantize: Quantization | None = None
