"""The ``pruning`` part of a config: a policy's settings, or a speed-up to be solved for."""

import logging
from dataclasses import asdict, field, fields, make_dataclass
from typing import TYPE_CHECKING, Annotated, Any, Union

from annotated_types import Gt, Le
from pydantic import ConfigDict, Field

from infinity.config import ModelConfig
from infinity.errors import UserError, named
from infinity.picture import picture_schedule
from infinity.policy import PolicyRequest, PruningPolicy
from infinity.sampling.settings import SamplingSettings, resolve_settings
from infinity.schedule import ScaleSchedule
from stepvar_patch.policies import POLICIES, Policy
from stepvar_patch.policies.oracle import OraclePolicy, draw_with_oracle
from stepvar_patch.policies.ruled import RuledRun

logger = logging.getLogger(__name__)

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

TargetSpeedup = Annotated[float, Gt(1), Le(100)]


def _with_target(policy: type[Policy]) -> type[Any]:
    """The policy's settings as a config may give them: with a speed-up in place of ratios."""
    target = ("target_speedup", TargetSpeedup | None, field(default=None))
    return make_dataclass(
        policy.__name__,
        [target],
        bases=(policy,),
        namespace={"__pydantic_config__": STRICT, "__module__": __name__},
        frozen=True,
        kw_only=True,
    )


if TYPE_CHECKING:
    PruningSetting = Policy
else:
    PruningSetting = Annotated[
        Union[tuple(_with_target(policy) for policy in POLICIES.values())],  # noqa: UP007
        Field(discriminator="kind"),
    ]


def sampling_settings(config: Any, model: ModelConfig, schedule: ScaleSchedule) -> SamplingSettings:
    """How a config samples, the model's own settings where it says nothing.

    Raises:
        UserError: a setting that the model or the schedule cannot take.
    """
    return resolve_settings(
        model.sampling,
        len(schedule),
        model.transformer.depth,
        guidance_scale=config.guidance_scale,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        guidance_layers=config.guidance_layers,
    )


def policy_request(
    model: ModelConfig, config: Any, *, images: int = 1, device_type: str = "cpu"
) -> PolicyRequest:
    """What a policy will be told about a call with these image settings.

    Args:
        model: of the weights.
        config: `ImageSettings`.
        images: of the call.
        device_type: ``cpu`` or ``cuda``.

    Raises:
        UserError: no template has the picture's size, or the model has no such resolution.
    """
    schedule = picture_schedule(
        model,
        aspect_ratio=config.aspect_ratio,
        height=config.height,
        width=config.width,
        resolution=config.resolution,
    )
    try:
        settings = sampling_settings(config, model, schedule)
    except UserError:  # reported where settings are checked; the rules are still worth checking
        guided, rows_live = (True,) * len(schedule), True
    else:
        guided = tuple(settings.guided_from(si) for si in range(len(schedule)))
        rows_live = settings.guidance.logits
    shape = model.transformer
    return PolicyRequest(
        schedule=schedule,
        images=images,
        guidance_rows=2 if guided[0] else 1,
        layers=shape.depth,
        width=shape.width,
        heads=shape.heads,
        patchify=shape.patchify,
        device_type=device_type,
        guided=guided,
        rows_live=rows_live,
    )


def resolve_pruning(config: Any, model: ModelConfig) -> PruningPolicy | None:
    """The policy that a config asks for, its ratios solved if it gives a speed-up; None is dense.

    Args:
        config: `ImageSettings`.
        model: decides the schedule and the cost.

    Raises:
        UserError: the settings do not fit the model or the picture's schedule, or no ratios reach
            the speed-up; all of them at once.
    """
    setting = config.pruning
    if setting is None:
        return None
    kind = POLICIES[setting.kind]
    policy = kind(**{f.name: getattr(setting, f.name) for f in fields(kind)})
    request = policy_request(model, config)
    if setting.target_speedup is not None:
        from stepvar_patch.target_speedup import solve

        settings = sampling_settings(config, model, request.schedule)
        with named("pruning"):
            policy = solve(policy, setting.target_speedup, model, request, settings=settings)
    with named("pruning"):
        run = policy.start(request)
    if isinstance(run, RuledRun) and run.idle and policy.name != "dense":
        logger.warning("pruning: %s leaves nothing out with these settings: dense", policy.name)
    return policy


def draw_pruned(pipeline: Any, policy: PruningPolicy | None, *args: Any, **kwargs: Any) -> Any:
    """``pipeline(*args, **kwargs)`` under ``policy``; None leaves the pipeline as it is.

    Unlike `stepvar_patch.apply`, which asks for a policy that fits the model's own square pictures,
    this takes one that fits the pictures of the call.

    Raises:
        UserError: the policy does not fit the call, or what the pipeline itself refuses.
    """
    if policy is None:
        return pipeline(*args, **kwargs)
    if isinstance(policy, OraclePolicy):
        return draw_with_oracle(pipeline, policy, *args, **kwargs)
    before, pipeline.policy = pipeline.policy, policy
    try:
        return pipeline(*args, **kwargs)
    finally:
        pipeline.policy = before


def recorded(policy: PruningPolicy | None) -> dict[str, Any] | None:
    """The policy as JSON values, for the image it made."""
    return None if policy is None else asdict(policy)  # type: ignore[call-overload]
