"""The oracle: keeps the tokens that a dense run of the same pictures changed most.

A control, not an upper bound (docs/findings.md). It saves nothing: the dense run comes first.
Shape legend: B images, N positions of the scale, C width.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from infinity.errors import UserError
from infinity.output import PipelineOutput
from infinity.pipeline import InfinityPipeline
from infinity.policy import Branch, DenseRun, Event, PolicyRequest, PolicyRun, PruningPolicy
from infinity.schedule import Grid
from stepvar_patch.policies.selection import Score, Selection, SelectionRun
from stepvar_patch.scores.layer_change import layer_change


@dataclass(frozen=True, kw_only=True)
class OraclePolicy(Selection):
    """Keeps the tokens with the largest true change of the stream over all layers.

    It needs a recorded dense run: draw with :func:`draw_with_oracle`.
    """

    replayable: ClassVar[bool] = False
    kind: Literal["oracle"] = "oracle"

    @property
    def name(self) -> str:
        return self.kind

    def score(self, request: PolicyRequest) -> Score:
        """A placeholder that lets the settings be checked before any picture is recorded."""

        def unrecorded(x: Tensor, si: int, grid: Grid, count: int) -> Tensor:
            raise UserError(
                "oracle needs a recorded dense run; allowed: draw_with_oracle(pipeline, policy, …)"
            )

        return unrecorded


@dataclass
class ChangeRecorder:
    """A dense policy that records, per call and scale, how much every token changed.

    Attributes:
        calls: one mapping per generation call: scale → ``(B, N)`` mean squared change.
    """

    calls: list[dict[int, Float[Tensor, "images n"]]] = field(default_factory=list)
    name: str = "dense"

    def start(self, request: PolicyRequest) -> PolicyRun:
        self.calls.append({})
        return _RecordingRun(request, self.calls[-1])


class _RecordingRun(DenseRun):
    events: frozenset[Event] = frozenset({"layer"})

    def __init__(self, request: PolicyRequest, changes: dict[int, Tensor]) -> None:
        super().__init__(request)
        self.changes = changes
        self.entered: Tensor | None = None

    def after(self, event: Event, si: int, layer: int, branch: Branch | None, data: Any) -> None:
        before, after = (x[: self.request.images] for x in data)
        if layer == 0:
            self.entered = before
        if layer + 1 == self.request.layers:
            assert self.entered is not None
            self.changes[si] = layer_change(self.entered, after)


@dataclass
class _Replaying:
    """The oracle's settings with recorded changes, handed out call by call."""

    policy: OraclePolicy
    calls: list[dict[int, Tensor]]
    name: str = "oracle"
    _next: int = 0

    def start(self, request: PolicyRequest) -> PolicyRun:
        changes = self.calls[self._next]
        self._next += 1

        def recorded(x: Tensor, si: int, grid: Grid, count: int) -> Tensor:
            images = request.images
            return changes[si].repeat(len(x) // images, 1)

        return SelectionRun(request, self.policy, recorded)


def replaying(policy: OraclePolicy, calls: list[dict[int, Tensor]]) -> PruningPolicy:
    """``policy`` with the changes that a :class:`ChangeRecorder` recorded of the same calls."""
    return _Replaying(policy, calls)


def draw_with_oracle(
    pipeline: InfinityPipeline, policy: OraclePolicy, *args: Any, **kwargs: Any
) -> PipelineOutput:
    """``pipeline(*args, **kwargs)`` under the oracle: drawn densely first, then with its choice.

    Args:
        pipeline: whatever policy it has is set aside.
        policy: the oracle's settings.
        args, kwargs: of the pipeline's call; ``seed`` must be given.

    Raises:
        UserError: no seed, or what the pipeline itself refuses.
    """
    if kwargs.get("seed") is None:
        raise UserError("oracle needs a seed, so that both runs draw the same pictures")
    recorder = ChangeRecorder()
    applied = pipeline.policy
    try:
        pipeline.policy = recorder
        pipeline(*args, **{**kwargs, "output_type": "latent", "callback_on_scale_end": None})
        pipeline.policy = replaying(policy, recorder.calls)
        return pipeline(*args, **kwargs)
    finally:
        pipeline.policy = applied
