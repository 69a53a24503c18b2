"""What a file of ``stepvar bench precision`` may say."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Le, MinLen
from pydantic import ConfigDict

from infinity.config import EngineMode
from infinity.io.prompts import MAX_SEED
from stepvar_patch.experiments.bench.schema import RANDOM
from stepvar_patch.experiments.problems import nearest
from stepvar_patch.experiments.pruning import STRICT
from stepvar_patch.experiments.schema import Device, Dtype, FilePath


@dataclass(frozen=True, kw_only=True)
class PrecisionArm:
    """How an arm computes; ``None`` is the default of ``stepvar bench``.

    Attributes:
        dtype, engine, fp8: as of a bench file.
        against: earlier arms that it is compared with; None is the first of all.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    dtype: Dtype | None = None
    engine: EngineMode | None = None
    fp8: bool | None = None
    against: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class PrecisionConfig:
    """One run of ``stepvar bench precision``.

    Attributes:
        weights: model directory.
        output: JSON file.
        prompts: file of prompts.
        images: how many are drawn, the first of the file.
        batch_size: drawn at once on a GPU.
        seed: of the first image; the others count up from it.
        device: ``None`` takes a GPU if there is one.
        arms: label → how it computes; the first one gives the history of all.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    weights: FilePath
    output: FilePath
    prompts: FilePath
    images: Annotated[int, Ge(1), Le(10_000)] = 64
    batch_size: Annotated[int, Ge(1), Le(1024)] = 32
    seed: Annotated[int, Ge(0), Le(MAX_SEED)] = 0
    device: Device | None = None
    arms: Annotated[Mapping[str, PrecisionArm], MinLen(2)]

    def __post_init__(self) -> None:
        if self.weights == RANDOM:
            raise ValueError("weights is random; what a precision changes is seen on trained ones")
        before: list[str] = []
        for label, arm in self.arms.items():
            for name in arm.against or ():
                if name not in before:
                    told = nearest(name, before) if before else "the first arm has none before it"
                    raise ValueError(f"arms.{label}.against names {name!r}; {told}")
            before.append(label)
