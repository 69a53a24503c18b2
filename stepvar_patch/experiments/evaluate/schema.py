"""What an evaluation file may say."""

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge

from stepvar_patch.experiments.schema import FilePath, GenerateConfig
from stepvar_patch.experiments.scorers.base import MetricFiles
from stepvar_patch.experiments.scorers.distances import Protocol


@dataclass(frozen=True, kw_only=True)
class EvalConfig(GenerateConfig):
    """One run of ``stepvar eval``: a generate config, drawn dense and as it stands, and scored.

    Attributes:
        output: folder of the scores and of the two runs ``dense`` and ``pruned``.
        images: how many pictures, the first of the prompt file; ``None`` is all.
        run: score this folder of ``stepvar generate`` instead of drawing.
        reference: with ``run``: folder of the dense run to compare with.
        fid_protocol: how pictures are resized for Inception: clean or tensorflow.
        files: local files that metrics need.
    """

    images: Annotated[int, Ge(1)] | None = None
    run: FilePath | None = None
    reference: FilePath | None = None
    fid_protocol: Protocol = "clean"
    files: MetricFiles = field(default_factory=MetricFiles)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reference is not None and self.run is None:
            raise ValueError("reference belongs to run; without run the dense run is drawn")
