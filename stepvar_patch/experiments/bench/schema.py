"""What a benchmark file may say, and the arms that it stands for."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any

from annotated_types import Ge, Le, MinLen

from infinity.config import PRESETS, EngineMode
from infinity.errors import UserError
from infinity.io.prompts import MAX_SEED
from stepvar_patch.experiments.problems import nearest
from stepvar_patch.experiments.schema import Device, Dtype, FilePath, ImageSettings

RANDOM = "random"
"""In place of a model directory: a preset's true shapes with random weights."""

BatchSizes = Annotated[tuple[Annotated[int, Ge(1), Le(1024)], ...], MinLen(1)]


@dataclass(frozen=True, kw_only=True)
class ArmSettings(ImageSettings):
    """What arms may differ in, beside the settings of the images; ``None`` is the file's own.

    Attributes:
        dtype: ``None`` is bfloat16 on a GPU and float32 on the CPU.
        attention: backend name; ``None`` is auto.
        engine: how calls are carried out; ``None`` is auto.
        fp8: the blocks' large products in fp8; ``None`` is off.
        batch_sizes: images drawn at once; each is a row of the result.
    """

    dtype: Dtype | None = None
    attention: Annotated[str, MinLen(1)] | None = None
    engine: EngineMode | None = None
    fp8: bool | None = None
    batch_sizes: BatchSizes | None = None


@dataclass(frozen=True, kw_only=True)
class BenchConfig(ArmSettings):
    """One run of ``stepvar bench``; the fields of `ArmSettings` here hold for all arms.

    Attributes:
        weights: model directory; an official transformer; or ``random``, with ``preset``.
        preset: shapes for random weights, e.g. infinity-2b.
        tokenizer: the official tokenizer file that belongs to an official transformer.
        text_encoder: its folder, if it is not the model directory's own. With random weights:
            ``random`` runs flan-T5-XL's shapes, ``None`` takes random features.
        output: JSON file.
        prompts: taken in turn until a batch is full.
        text_tokens: per prompt, for random weights.
        seed: of an arm's first image; its further ones, in all draws, count up from it.
        device: ``cpu``, ``cuda`` or ``cuda:N``; ``None`` takes a GPU if there is one.
        warmup: draws of every row before the first one that counts.
        rounds: draws that count; every round draws every row once.
        further_rounds: how many of them, the first, also draw an arm's further batch sizes; None is
            all.
        pace_s: if above 0, every round draws every arm a second time, with its first batch size and
            after a pause that long.
        baseline: the arm that speed-ups refer to, and the numbers of images until an arm pays off.
        first_image: arms for which a fresh process is started, with their first batch size: load,
            first to third image, peak memory.
        kernels: arms of which one further draw is profiled, likewise, and on a GPU another is timed
            stage by stage inside its graphs.
        arms: label → what differs.
    """

    weights: FilePath
    preset: Annotated[str, MinLen(1)] | None = None
    tokenizer: FilePath | None = None
    text_encoder: FilePath | None = None
    output: FilePath
    prompts: Annotated[tuple[Annotated[str, MinLen(1)], ...], MinLen(1)] = ("a red apple",)
    text_tokens: Annotated[int, Ge(1), Le(512)] = 47
    seed: Annotated[int, Ge(0), Le(MAX_SEED)] = 0
    device: Device | None = None
    warmup: Annotated[int, Ge(0), Le(1000)] = 3
    rounds: Annotated[int, Ge(1), Le(100_000)] = 10
    further_rounds: Annotated[int, Ge(1), Le(100_000)] | None = None
    pace_s: Annotated[float, Ge(0), Le(60)] = 0.0
    baseline: str
    first_image: tuple[str, ...] = ()
    kernels: tuple[str, ...] = ()
    arms: Annotated[Mapping[str, ArmSettings], MinLen(1)]

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("baseline", "first_image", "kernels"):
            labels = getattr(self, name)
            for label in (labels,) if isinstance(labels, str) else labels:
                if label not in self.arms:
                    raise ValueError(f"{name} names {label!r}; {nearest(label, list(self.arms))}")
        if (self.weights == RANDOM) != (self.preset is not None):
            raise ValueError("preset belongs to weights=random, and the other way round")
        if self.preset is not None and self.text_encoder not in (None, RANDOM):
            raise ValueError(
                f"text_encoder is {self.text_encoder!r}; allowed with weights=random: random or "
                "null"
            )
        if self.preset is not None and self.preset not in PRESETS:
            raise ValueError(f"preset is {self.preset!r}; {nearest(self.preset, list(PRESETS))}")


@dataclass(frozen=True, kw_only=True)
class Arm(ArmSettings):
    """One arm with everything that the file says about all of them."""

    label: str


def arms(config: BenchConfig) -> list[Arm]:
    """The arms in the order of the file.

    Raises:
        UserError: settings of an arm and of the file that exclude each other.
    """
    names = [f.name for f in fields(ArmSettings)]
    found = []
    for label, own in config.arms.items():
        values: dict[str, Any] = {
            name: getattr(config, name) if getattr(own, name) is None else getattr(own, name)
            for name in names
        }
        try:
            found.append(Arm(label=label, **values))
        except ValueError as error:
            raise UserError(f"arms.{label}: {error}") from error
    return found
