"""Draws the cells of an ablation beside their dense originals."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from infinity.errors import named
from infinity.policy import PruningPolicy
from stepvar_patch.experiments.ablate.schema import Cell
from stepvar_patch.experiments.compare import Drawn, compare, draw_batch
from stepvar_patch.experiments.maker import settings_of
from stepvar_patch.experiments.plan import ImageJob
from stepvar_patch.experiments.pruning import resolve_pruning
from stepvar_patch.policies.oracle import OraclePolicy


class Bench:
    """A pipeline, and the dense pictures of the batch at hand, which cells with equal settings
    share.

    On a GPU nothing is recorded into graphs, which would not pay for a few calls of each cell, and
    a cell's first batch, which sets up kernels, has no time.

    Args:
        pipeline: loaded, for this bench alone.
        batch_size: images drawn together on a GPU.
    """

    def __init__(self, pipeline: Any, batch_size: int) -> None:
        self.pipeline, self.batch_size = pipeline, 1
        self.on_gpu = pipeline.device.type != "cpu"
        if self.on_gpu:
            self.batch_size = pipeline.max_batch_size = batch_size
            if pipeline.current_engine().mode == "graphs":
                pipeline.engine = "eager"
        self._warm: set[str] = set()
        self._dense: dict[str, list[Drawn]] = {}

    def forget(self) -> None:
        """Drops the dense pictures of the last batch."""
        self._dense.clear()

    def draw(self, cell: Cell, batch: Sequence[ImageJob], *, count: bool) -> list[dict[str, Any]]:
        """One cell's pictures against the dense ones: a row's measured values per picture.

        Args:
            cell: of the ablation.
            batch: at most ``batch_size`` images.
            count: operations instead of time.

        Raises:
            UserError: the cell's policy or a setting does not fit the model.
        """
        settings = settings_of(cell.config, self.pipeline)
        originals = self._originals(batch, settings, count)
        with named(f"cell '{cell.label}'"):
            policy = resolve_pruning(cell.config, self.pipeline.config)
            drawn = draw_batch(self.pipeline, batch, settings, policy, count=count)
        timed = count or self._is_warm(cell.label)
        return [
            {
                **asdict(compared),
                "ms": picture.ms if timed else None,
                "dense_ms": original.ms if timed else None,
                "flops": _own_flops(policy, picture, original),
                "dense_flops": original.flops,
            }
            for compared, picture, original in zip(
                compare(drawn, originals), drawn, originals, strict=True
            )
        ]

    def _originals(
        self, batch: Sequence[ImageJob], settings: Mapping[str, Any], count: bool
    ) -> list[Drawn]:
        jobs = [(job.row.prompt, job.negative_prompt, job.seed) for job in batch]
        key = repr((jobs, sorted(settings.items())))
        if key not in self._dense:
            self._dense[key] = draw_batch(self.pipeline, batch, settings, None, count=count)
        return self._dense[key]

    def _is_warm(self, name: str) -> bool:
        """Whether a time means something: from a cell's second batch on, or on the CPU."""
        known = name in self._warm or not self.on_gpu
        self._warm.add(name)
        return known


def _own_flops(policy: PruningPolicy | None, picture: Drawn, original: Drawn) -> int | None:
    """A picture's operations, without the dense run that the oracle needs."""
    if picture.flops is None or original.flops is None or not isinstance(policy, OraclePolicy):
        return picture.flops
    return picture.flops - original.flops
