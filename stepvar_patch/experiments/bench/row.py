"""One row of a benchmark: an arm at a batch size, drawn again and again."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import torch

from infinity.config import ModelConfig
from infinity.errors import UserError
from infinity.policy import DensePolicy, PruningPolicy
from infinity.timing import Stage, StageClock
from stepvar_patch.cost import plan_cost
from stepvar_patch.experiments.bench.schema import Arm, BenchConfig
from stepvar_patch.experiments.bench.watch import KeptTokens
from stepvar_patch.experiments.maker import settings_of
from stepvar_patch.experiments.metrics.flops import count_flops
from stepvar_patch.experiments.pruning import (
    draw_pruned,
    policy_request,
    resolve_pruning,
    sampling_settings,
)
from stepvar_patch.policies.oracle import OraclePolicy

StageTimes = dict[tuple[Stage, int | None], float]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One timed draw of a whole batch.

    Attributes:
        round: counted from 0.
        position: of the draw among all timed draws of the benchmark.
        total_ms: of the call, device work included, by the monotonic clock.
        stages: milliseconds by stage and scale, by CUDA events on a GPU.
    """

    round: int
    position: int
    total_ms: float
    stages: StageTimes


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Operations of the scale loop per image, and how they were found."""

    per_image: float | None
    source: str


class Drawer:
    """Draws an arm's batch, other pictures every time, since some policies decide by them.

    Args:
        arm: what to draw.
        batch_size: images at once.
        config: of the benchmark: prompts and first seed.
        pipeline: its attention and batch size are set before every draw, as arms share it.

    Raises:
        UserError: settings that do not fit the model.
    """

    def __init__(self, arm: Arm, batch_size: int, config: BenchConfig, pipeline: Any) -> None:
        self.arm, self.batch_size, self.pipeline = arm, batch_size, pipeline
        self.prompts = [config.prompts[i % len(config.prompts)] for i in range(batch_size)]
        self._first_seed, self._draws = config.seed, count()
        resolution = arm.resolution or pipeline.config.resolution
        self.model: ModelConfig = replace(pipeline.config, resolution=resolution)
        self.policy = resolve_pruning(arm, self.model)
        self.settings = {**settings_of(arm, pipeline), "resolution": resolution}
        self.request = policy_request(
            self.model, arm, images=batch_size, device_type=pipeline.device.type
        )

    def draw(self, *, output: str = "pt", **more: Any) -> Any:
        """One batch under the arm's policy; ``more`` goes to the pipeline."""
        first = self._first_seed + self.batch_size * next(self._draws)
        return self._under(self.policy, output=output, first_seed=first, **more)

    def timed(self, round_: int, position: int) -> Sample:
        """One batch with its times."""
        device = self.pipeline.device
        synchronize(device)
        start = time.perf_counter()
        clock = StageClock(device)
        self.draw(stage_clock=clock)
        synchronize(device)
        total_ms = 1e3 * (time.perf_counter() - start)
        return Sample(
            round=round_, position=position, total_ms=total_ms, stages=clock.milliseconds()
        )

    def stages_inside(self) -> StageTimes:
        """Stages of one draw, told apart inside recorded graphs too; on a GPU only."""
        for _ in range(3):
            # The first such call runs eagerly, the second is recorded.
            clock = StageClock(self.pipeline.device, inside=True)
            self.draw(stage_clock=clock)
        return clock.milliseconds()

    def kept_tokens(self) -> list[float] | None:
        """Tokens computed per row and scale; None for the oracle, which draws twice."""
        if isinstance(self.policy, OraclePolicy):
            return None
        counter = KeptTokens(self.policy or DensePolicy())
        self._under(counter, output="latent")
        return counter.per_scale

    def flops(self) -> Flops:
        """Operations of the scale loop: counted while it runs on a CPU, from the cost model on a
        GPU.
        """
        if self.pipeline.device.type != "cpu":
            return self._modelled_flops()
        chosen, self.pipeline.attention = self.pipeline.attention, "sdpa"
        try:
            encoder, prompts = self.pipeline.text_encoder, self.prompts
            encoding = count_flops(lambda: encoder.encode(prompts))
            whole = count_flops(lambda: self._under(self.policy, output="latent", attention="sdpa"))
        finally:
            self.pipeline.attention = chosen
        return Flops(per_image=(whole - encoding) / self.batch_size, source="counted")

    def _modelled_flops(self) -> Flops:
        lengths: Sequence[int] = self.pipeline.text_encoder.encode(self.prompts).lengths
        try:
            cost = plan_cost(
                self.policy or DensePolicy(),
                self.model,
                self.request,
                settings=sampling_settings(self.arm, self.model, self.request.schedule),
                text_tokens=round(sum(lengths) / len(lengths)),
            )
        except UserError as error:
            return Flops(per_image=None, source=str(error))
        return Flops(per_image=cost.flops / self.batch_size, source="cost model")

    def _under(
        self,
        policy: PruningPolicy | None,
        *,
        output: str,
        first_seed: int | None = None,
        attention: str | None = None,
        **more: Any,
    ) -> Any:
        pipeline, first = self.pipeline, self._first_seed if first_seed is None else first_seed
        pipeline.attention = attention or self.arm.attention or "auto"
        if pipeline.device.type != "cpu":
            pipeline.max_batch_size = self.batch_size
        return draw_pruned(
            pipeline,
            policy,
            self.prompts,
            seed=[first + index for index in range(self.batch_size)],
            output_type=output,
            **self.settings,
            **more,
        )


def synchronize(device: torch.device) -> None:
    """Waits until the device has done everything asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
