"""What a policy is asked with, and calls of the toy model."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from infinity.policy import PolicyRequest, PruningPolicy, Rows, ScaleView
from infinity.sampling.loop import ScaleEnd
from infinity.schedule import ScaleSchedule, scale_schedule
from infinity.transformer.model import InfinityTransformer
from stepvar_patch.policies.skipvar import LogisticFit, SkipDecision, SkipVARPolicy
from stepvar_patch.rules import ScaleRule
from tests.toy import toy_model, toy_run, toy_text

HALF = {"-2": ScaleRule(keep_ratio=0.5), "-1": ScaleRule(keep_ratio=0.5)}


def request_of(
    schedule: ScaleSchedule | None = None, *, images: int = 1, rows: int = 2, layers: int = 4
) -> PolicyRequest:
    schedule = schedule or scale_schedule(1.0, "0.06M")
    return PolicyRequest(
        schedule=schedule,
        images=images,
        guidance_rows=rows,
        layers=layers,
        width=8,
        heads=2,
        patchify=False,
        device_type="cpu",
    )


def view_of(
    request: PolicyRequest, si: int, *, rows: Rows = "both", codes: Tensor | None = None
) -> ScaleView:
    h, w = request.schedule.grids[si]
    x = torch.randn(request.images * (2 if rows == "both" else 1), h * w, request.width)
    latent = torch.zeros(request.images, 6, *request.schedule.grids[-1])
    return ScaleView(latent, codes, x, (h, w), rows)


def mask_of(indices: Sequence[int], n: int) -> Tensor:
    mask = torch.zeros(n, dtype=torch.bool)
    mask[list(indices)] = True
    return mask


def always(saving: int, classes: int = 4) -> LogisticFit:
    bias = tuple(1.0 if c == saving else 0.0 for c in range(classes))
    return LogisticFit(mean=(0, 0), scale=(1, 1), weights=((0.0, 0.0),) * classes, bias=bias)


def splitting(threshold: float, saving: int) -> LogisticFit:
    """``saving`` scales where the edge change is above ``threshold``, else none."""
    weights = tuple((1.0, 0.0) if c == saving else (0.0, 0.0) for c in range(4))
    bias = tuple(-9.0 if c not in (0, saving) else 0.0 for c in range(4))
    return LogisticFit(mean=(threshold, 0), scale=(1, 1), weights=weights, bias=bias)


def adaptive(drop: LogisticFit, rows: LogisticFit) -> SkipVARPolicy:
    decision = SkipDecision(drop=drop, rows=rows, after_scale=-4, preview_share=1 / 4)
    return SkipVARPolicy(scales={}, decision=decision)


def decode(latent: Tensor) -> Tensor:
    return latent[:, :3].tanh()


@cache
def model() -> InfinityTransformer:
    return toy_model()


def run_toy(
    lengths: tuple[int, ...], policy: PruningPolicy, ends: list[ScaleEnd] | None = None
) -> Tensor:
    text = toy_text(model(), lengths)
    return toy_run(model(), text, policy=policy, decode=decode, on_scale_end=ends)
