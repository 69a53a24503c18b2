"""What a pruning policy may ask of the generator, and the dense policy that asks for nothing.

The generator knows no pruning method. Before each scale it shows a policy a read-only view and
gets a :class:`ScalePlan`; inside the stack it asks again only where the plan says so; afterwards
it reports the events that the policy subscribed to. Source: spec pruning-methods §11.

Shape legend: B images, b rows, N positions of the scale, T packed total, C width, D bits per
token, d latent channels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from jaxtyping import Float, Int64
from torch import Tensor

from infinity.schedule import Grid, ScaleSchedule
from infinity.tokens import KeepSet, PackedTokens

Rows = Literal["both", "cond", "uncond"]
Branch = Literal["self_attention", "cross_attention", "ffn", "layer"]
Inside = Literal["layer", "branch"]
Event = Literal["branch", "layer", "logits", "codes"]


@dataclass(frozen=True)
class PolicyRequest:
    """What a policy learns once per call, before any scale runs.

    Attributes:
        guided: per scale, whether the unconditional half can still matter there; empty = unknown.
        rows_live: whether both guidance halves reach the last layer (guidance on logits).
    """

    schedule: ScaleSchedule
    images: int
    guidance_rows: int
    layers: int
    width: int
    heads: int
    patchify: bool
    device_type: str
    guided: tuple[bool, ...] = ()
    rows_live: bool = True


Decide = Callable[[Int64[Tensor, " n"]], tuple[int, ...]]
"""``few integers on the device → the same on the host``."""


def wait_for(values: Int64[Tensor, " n"]) -> tuple[int, ...]:
    """``values`` on the host, once the device has them."""
    return tuple(values.tolist())


@dataclass(frozen=True)
class ScaleView:
    """Read-only state before a scale.

    Attributes:
        latent: ``(B, d, Hv, Wv)`` sum of all codes so far, on the final latent grid.
        codes: ``(B, d, Hv_k, Wv_k)`` codes of the last executed scale, or None before the first.
        x: ``(b, N, C)`` embedded input of this scale, conditional rows first.
        grid: token grid of this scale.
        rows: which guidance rows ``x`` holds.
        decode: latent ``(B, d, h, w)`` → image in [−1, 1]; for policies that look at early
            pictures.
        decide: how a policy learns what the device has found, which takes a wait; see
            :class:`PruningPolicy`.
    """

    latent: Float[Tensor, "images d hv wv"]
    codes: Float[Tensor, "images d hk wk"] | None
    x: Float[Tensor, "b n width"]
    grid: Grid
    rows: Rows
    decode: Callable[[Tensor], Tensor] | None = None
    decide: Decide = wait_for


@dataclass(frozen=True)
class RestoreContext:
    """What a restoration may read: the dense stream (or a zero change) before pruning, and where
    it happens.

    Attributes:
        gate: where a branch's plan is ``whole``, factor per row by which the fresh outputs, in the
            weights' dtype, are still to be multiplied, if the blocks are fused and it has one;
            None: they are what the branch adds.
    """

    before: Float[Tensor, "b n width"]
    grid: Grid
    scale: int
    layer: int
    branch: Branch
    gate: Float[Tensor, "b width"] | None = None


Restore = Callable[[PackedTokens, RestoreContext], Tensor]
"""``(fresh packed tokens, context) → (b, N, C)``: makes the map dense again."""

CodeRestore = Callable[[Tensor, KeepSet, ScaleView], Tensor]
"""``(codes (T, D) of the kept tokens as ±1/√d, keep set per image, view) → (B, N, D)`` dense codes
in token layout.
"""


@dataclass(frozen=True)
class ScalePlan:
    """What happens at one scale. The default is the dense scale.

    Attributes:
        run: False skips the scale: nothing is added to the latent, nothing is cached.
        rows: guidance rows that run from here on; a row once dropped stays dropped.
        guidance: overrides the guidance scale of this scale.
        guidance_echo: where one half runs, adds so much of the difference that the two halves made
            after the last layer at the last scale that ran both; see
            :class:`infinity.sampling.echo.GuidanceEcho`.
        keep: positions computed, one set per image (shared by its guidance rows) or one per row;
            None = all.
        layers: half-open layer range in which ``keep`` holds, or in which the policy is asked;
            None = all layers.
        restore: makes the stream dense at the end of ``layers``; needed with ``keep`` unless
            ``restore_codes`` is given.
        restore_codes: runs head and sampling on kept tokens only and makes the *codes* dense;
            needs ``layers`` to reach the last layer.
        kv_write: cache the kept tokens' keys and values, or nothing, or (``propagate``) those of
            every position, taken from the kept token that ``kv_source`` names, under the
            position's own rotary phase.
        kv_source: int64 ``(b, N)`` index into the row's kept tokens, for ``kv_write="propagate"``.
        inside: ask :meth:`PolicyRun.plan_branch` per layer or per branch; excludes ``keep``.
        stop_after: the picture is finished after this scale.
    """

    run: bool = True
    rows: Rows = "both"
    guidance: float | None = None
    guidance_echo: float = 0.0
    keep: KeepSet | None = None
    layers: tuple[int, int] | None = None
    restore: Restore | None = None
    restore_codes: CodeRestore | None = None
    kv_write: Literal["kept", "none", "propagate"] = "kept"
    kv_source: Tensor | None = None
    inside: Inside | None = None
    stop_after: bool = False

    def __post_init__(self) -> None:
        if self.keep is not None:
            if self.inside is not None:
                raise ValueError(
                    "a plan prunes the whole scale (keep) or inside the stack, not both"
                )
            if (self.restore is None) == (self.restore_codes is None):
                raise ValueError(
                    "a plan that keeps a subset needs exactly one of restore, restore_codes"
                )
        if (self.kv_write == "propagate") != (self.kv_source is not None):
            raise ValueError("kv_write='propagate' and kv_source belong together")


DENSE_SCALE = ScalePlan()


@dataclass(frozen=True)
class BranchPlan:
    """Pruning inside the stack: which tokens one branch (or one layer) computes.

    Attributes:
        keep: positions, one set per row.
        restore: for a branch, dense *change* from the kept tokens' outputs, gated but where the
            context holds a gate (context.before is the stream); for a layer, dense *state*.
        gather: builds the packed input itself (merged tokens); default takes the kept rows as they
            are.
        whole: for a branch, ``restore`` gives the dense stream after it instead of its change, and
            applies ``context.gate`` itself, if there is one.
    """

    keep: KeepSet
    restore: Restore
    gather: Callable[[Tensor, KeepSet], PackedTokens] | None = None
    whole: bool = False


@runtime_checkable
class PolicyRun(Protocol):
    """A policy at work on one generation call; its memory ends with the call.

    Attributes:
        events: what :meth:`after` wants to hear; unsubscribed events cost nothing. Data per event:
            ``branch``: gated dense output ``(b, N, C)``; ``layer``: ``(before, after)``, both
            ``(b, N, C)``; ``logits``: ``(cond, uncond or None)`` before temperature and guidance;
            ``codes``: the latent so far.
        cached_tokens: upper bound of the keys that each scale writes to a layer's cache, per row.
    """

    events: frozenset[Event]
    cached_tokens: tuple[int, ...]

    def plan_scale(self, si: int, view: ScaleView) -> ScalePlan: ...

    def plan_branch(self, si: int, layer: int, branch: Branch, x: Tensor) -> BranchPlan | None: ...

    def after(
        self, event: Event, si: int, layer: int, branch: Branch | None, data: Any
    ) -> None: ...


@runtime_checkable
class PruningPolicy(Protocol):
    """A method that decides which tokens, rows and scales are worth computing: settings only.

    A policy whose class has ``replayable = True`` promises that what a call does on the host, with
    all shapes, follows from the settings and from what :attr:`ScaleView.decide` told it alone, and
    that its run is of no use to anyone after the call. Then calls may be recorded into CUDA graphs,
    answer by answer, and replayed without asking the policy again; the fewer answers there are, the
    sooner one comes back. While a call is recorded, its run is copied before every scale
    (``copy.copy``) and the copy goes on, so that it may hold no bound method of itself. Where it
    decides, several copies of one run go on, one after the other: what it remembers, its score's
    memory included, it replaces and never changes in place.
    """

    @property
    def name(self) -> str: ...

    def start(self, request: PolicyRequest) -> PolicyRun:
        """The policy's memory for one call.

        Raises:
            UserError: the request has something that the policy cannot serve.
        """
        ...


class DenseRun:
    """Computes every token; the base of runs that change some answers only."""

    events: frozenset[Event] = frozenset()

    def __init__(self, request: PolicyRequest) -> None:
        self.request = request
        self.cached_tokens = request.schedule.tokens_per_scale

    def plan_scale(self, si: int, view: ScaleView) -> ScalePlan:
        return DENSE_SCALE

    def plan_branch(self, si: int, layer: int, branch: Branch, x: Tensor) -> BranchPlan | None:
        return None

    def after(self, event: Event, si: int, layer: int, branch: Branch | None, data: Any) -> None:
        """No events are subscribed."""


@dataclass(frozen=True)
class DensePolicy:
    """Computes every token of every scale."""

    replayable: ClassVar[bool] = True
    name: str = "dense"

    def start(self, request: PolicyRequest) -> PolicyRun:
        return DenseRun(request)
