"""Puts a policy on a pipeline and takes it off again, from outside the model."""

import weakref
from weakref import WeakKeyDictionary

from infinity.errors import UserError
from infinity.pipeline import InfinityPipeline
from infinity.policy import PolicyRequest, PruningPolicy

_TOPMOST: "WeakKeyDictionary[InfinityPipeline, Handle]" = WeakKeyDictionary()


class Handle:
    """A policy on a pipeline. As a context manager it takes the policy off at the end, whatever
    happened inside.

    Attributes:
        policy: the policy that was applied.
        active: whether it still is.
    """

    def __init__(
        self, pipeline: InfinityPipeline, policy: PruningPolicy, below: "Handle | None"
    ) -> None:
        self.policy = policy
        self.active = True
        self._pipeline = weakref.ref(pipeline)
        self._previous = pipeline.policy
        self._below = below
        self._entered = 0

    def remove(self) -> None:
        """The pipeline's policy becomes what it was before; removing again changes nothing."""
        pipeline = self._pipeline()
        if not self.active or pipeline is None:
            return
        self.active = False
        above, handle = None, _TOPMOST[pipeline]
        while handle is not self:
            assert handle._below is not None
            above, handle = handle, handle._below
        if above is not None:
            above._previous, above._below = self._previous, self._below
            return
        pipeline.policy = self._previous
        if self._below is None:
            del _TOPMOST[pipeline]
        else:
            _TOPMOST[pipeline] = self._below

    def __enter__(self) -> "Handle":
        self._entered += 1
        return self

    def __exit__(self, *_error: object) -> None:
        self._entered -= 1
        if not self._entered:
            self.remove()


def apply(pipeline: InfinityPipeline, policy: PruningPolicy) -> Handle:
    """Makes ``pipeline`` draw under ``policy``.

    Applying the policy that is already on top gives the same handle again. Weights, settings and
    random numbers stay untouched.

    Raises:
        UserError: an object that is no pipeline or no policy, or settings that do not fit the
            pipeline's model.
    """
    if not isinstance(pipeline, InfinityPipeline):
        raise UserError(f"apply got a {type(pipeline).__name__}; allowed: an InfinityPipeline")
    if isinstance(policy, type) or not isinstance(policy, PruningPolicy):
        named = policy.__name__ if isinstance(policy, type) else type(policy).__name__
        raise UserError(
            f"apply got {named}; allowed: a policy object, with a name and a start method"
        )
    top = _TOPMOST.get(pipeline)
    if top is not None and top.policy == policy and pipeline.policy == policy:
        return top
    policy.start(_request(pipeline))
    handle = Handle(pipeline, policy, top)
    pipeline.policy = policy
    _TOPMOST[pipeline] = handle
    return handle


def _request(pipeline: InfinityPipeline) -> PolicyRequest:
    """A guided call for one square picture."""
    config = pipeline.config.transformer
    return PolicyRequest(
        schedule=pipeline.schedule(),
        images=1,
        guidance_rows=2,
        layers=config.depth,
        width=config.width,
        heads=config.heads,
        patchify=config.patchify,
        device_type=pipeline.device.type,
    )
