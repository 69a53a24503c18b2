"""StepVAR's own choices: which tokens it keeps, and the settings it refuses."""

import logging
from typing import Annotated, Any

import pytest
import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from infinity.errors import UserError
from infinity.policy import PolicyRequest, ScaleView
from infinity.schedule import scale_schedule
from infinity.tokens import KeepSet
from stepvar_patch import select
from stepvar_patch.policies import POLICIES, DensePolicy, Policy, StepVARPolicy
from stepvar_patch.policies.selection import SelectionRun
from stepvar_patch.rules import ScaleRule
from stepvar_patch.scores.layer_change import resize_scores
from stepvar_patch.scores.structure import principal_directions, structure_score
from stepvar_patch.scores.texture import texture_score
from stepvar_patch.select import spread_ties
from stepvar_patch.upsample import nearest_source
from tests.toy import lattice, toy_model, toy_run, toy_text

SCHEDULE = scale_schedule(1.0, "0.06M")
GRID, N = (16, 16), 256


def request(**changes: Any) -> PolicyRequest:
    values = {
        "schedule": SCHEDULE,
        "images": 2,
        "guidance_rows": 2,
        "layers": 8,
        "width": 12,
        "heads": 2,
        "patchify": False,
        "device_type": "cpu",
    }
    return PolicyRequest(**(values | changes))  # type: ignore[arg-type]


def features(seed: int = 0, rows: int = 2) -> Tensor:
    """A smooth ramp with a rough patch, and noise."""
    noise = torch.randn(rows, N, 12, generator=torch.Generator().manual_seed(seed))
    ramp = torch.linspace(0, 4, N)[None, :, None] * torch.ones(12)
    return ramp + 0.3 * noise


def chosen(x: Tensor, **settings: Any) -> KeepSet:
    policy = StepVARPolicy(scales={"-1": ScaleRule(keep_ratio=0.25)}, **settings)
    run = policy.start(request())
    assert isinstance(run, SelectionRun)
    x = x.repeat(2, 1, 1)
    view = ScaleView(torch.zeros(2, 6, 16, 16), None, x, GRID, "both")
    keep = run.select(6, x) if policy.scope != "scale" else run.plan_scale(6, view).keep
    assert keep is not None
    return keep


def test_the_score_is_the_published_sum_of_mean_normalised_scores() -> None:
    x = features()
    s = structure_score(x, principal_directions(x))
    t = texture_score(x, GRID)
    score = s / s.mean(1, keepdim=True) + t / t.mean(1, keepdim=True)
    best = score.topk(64, dim=1).indices.sort(1).values
    assert torch.equal(chosen(x).indices.view(2, 64), best)


def test_the_share_goes_from_texture_alone_to_structure_alone() -> None:
    x = features()
    s = structure_score(x, principal_directions(x)).topk(64).indices.sort(1).values
    t = texture_score(x, GRID).topk(64).indices.sort(1).values
    for combine in ("sum", "split"):
        for share, expected in ((0.0, t), (1.0, s)):
            keep = chosen(x, structure_share=share, combine=combine)
            assert torch.equal(keep.indices.view(2, 64), expected)


VARIANTS: list[dict[str, Any]] = [
    {"normalise": "raw"},
    {"normalise": "rank"},
    {"combine": "split"},
    {"features": "unit"},
    {"structure_share": 1.0},
    {"components": 4},
    {"texture_filter": "laplacian"},
    {"texture_filter": "haar"},
    {"min_coverage": 3},
    {"structure_share": 0.8},
    {"smooth": True},
]


@pytest.mark.parametrize("settings", VARIANTS, ids=lambda s: "-".join(map(str, s.values())))
def test_every_option_changes_the_choice_and_keeps_the_budget(settings: dict[str, Any]) -> None:
    x = torch.cat([features(seed, 1) for seed in range(2)])
    keep = chosen(x, **settings)
    assert keep.counts == (64, 64)
    assert not torch.equal(keep.indices, chosen(x).indices)


def test_iterations_turn_the_direction() -> None:
    noise = torch.randn(2, N, 12, generator=torch.Generator().manual_seed(4))
    few = chosen(noise, iterations=1, structure_share=1.0)
    many = chosen(noise, iterations=20, structure_share=1.0)
    assert not torch.equal(few.indices, many.indices)


def test_own_and_mean_rows_change_the_choice_inside_layers() -> None:
    policy = StepVARPolicy(
        scope="layer", scored_rows="own", scales={"-1": ScaleRule(keep_ratio=0.25)}
    )
    run = policy.start(request())
    x = torch.cat([features(0), features(1)])
    own = run.select(6, x)  # type: ignore[attr-defined]
    assert own.counts == (64,) * 4
    assert not torch.equal(own.rows(0, 2).indices, own.rows(2, 4).indices)
    mean = StepVARPolicy(scope="layer", scored_rows="mean", scales=policy.scales).start(request())
    shared = mean.select(6, x)  # type: ignore[attr-defined]
    assert shared.counts == (64, 64)
    assert not torch.equal(shared.indices, own.rows(0, 2).indices)


def test_a_warm_start_remembers_the_previous_scale() -> None:
    scales = {"-2": ScaleRule(keep_ratio=0.5), "-1": ScaleRule(keep_ratio=0.25)}
    kept = {}
    for start in ("largest", "previous"):
        policy = StepVARPolicy(
            scales=scales,
            start_vector=start,
            iterations=1,
            structure_share=1.0,  # type: ignore[arg-type]
        )
        run = policy.start(request())
        noise = torch.randn(2, N, 12, generator=torch.Generator().manual_seed(4))
        run.select(5, noise[:, :144])  # type: ignore[attr-defined]
        kept[start] = run.select(6, noise).indices  # type: ignore[attr-defined]
    assert not torch.equal(kept["largest"], kept["previous"])


def late_run(layer: float, **settings: Any) -> SelectionRun:
    """A run before its last scale, whose previous scale has told every layer's stream."""
    scales = {"-1": ScaleRule(keep_ratio=0.25), **settings.pop("scales", {})}
    run = StepVARPolicy(scored_layer=layer, scales=scales, **settings).start(request())
    assert isinstance(run, SelectionRun)
    small, latent = features()[:, :144].repeat(2, 1, 1), torch.zeros(2, 6, 16, 16)
    if "-2" in scales:
        run.plan_scale(4, ScaleView(latent, None, small[:, :64], (8, 8), "both"))
        hear(run, 4, features(7)[:, :64])
    plan = run.plan_scale(5, ScaleView(latent, None, small, (12, 12), "both"))
    assert run.events == {"layer"}
    x = features(8)[:, :144]
    hear(run, 5, x if plan.keep is None else x[:, : plan.keep.counts[0]])
    return run


def hear(run: SelectionRun, si: int, x: Tensor) -> None:
    """Tells the layers' streams: each is the one before, moved on by one place."""
    x = x.repeat(2, 1, 1)
    for layer in range(8):
        run.after("layer", si, layer, None, (x.roll(layer, 1), x.roll(layer + 1, 1)))


def last_keep(run: SelectionRun) -> KeepSet:
    view = ScaleView(torch.zeros(2, 6, 16, 16), None, features().repeat(2, 1, 1), GRID, "both")
    keep = run.plan_scale(6, view).keep
    assert keep is not None
    assert run.events == frozenset()
    return keep


@pytest.mark.parametrize(("share", "layer"), [(1.0, 7), (0.875, 6), (0.5, 3), (0.01, 0)])
def test_a_late_layer_of_the_previous_scale_chooses(share: float, layer: int) -> None:
    x = features(8)[:, :144].roll(layer + 1, 1)
    score = resize_scores(texture_score(x, (12, 12)), (12, 12), GRID)
    best = spread_ties(score, GRID).topk(64, dim=1).indices.sort(1).values
    keep = last_keep(late_run(share, structure_share=0.0))
    assert torch.equal(keep.indices.view(2, 64), best)


def test_positions_pruned_at_the_previous_scale_are_scored_as_their_nearest_kept_token() -> None:
    run = late_run(1.0, scales={"-2": ScaleRule(keep_ratio=0.5)})
    x = features(8)[:, :72].roll(8, 1)
    assert run.keep is not None  # type: ignore[attr-defined]
    filled = x.gather(
        1,
        nearest_source(run.keep, (12, 12))[:, :, None].expand(-1, -1, 12),  # type: ignore[attr-defined]
    )
    assert torch.equal(run.features, filled)  # type: ignore[attr-defined]
    assert last_keep(run).counts == (64, 64)


@pytest.mark.parametrize("smooth", [False, True])
def test_broken_or_empty_features_of_a_layer_keep_a_lattice(smooth: bool) -> None:
    run = late_run(1.0, structure_share=0.0, smooth=smooth)
    told = run.features.clone()  # type: ignore[attr-defined]
    told[0], told[1] = 1.0, float("nan")
    run.features = told  # type: ignore[attr-defined]
    keep = last_keep(run)
    assert torch.equal(keep.rows(0, 1).indices, lattice(GRID, 64).indices)
    assert torch.equal(keep.rows(1, 2).indices, lattice(GRID, 64).indices)


def test_layers_outside_the_pruned_range_tell_every_position() -> None:
    run = late_run(0.25, scales={"-2": ScaleRule(keep_ratio=0.5)}, layers=(0.5, 1.0))
    x = features(8)[:, :72].repeat(2, 1, 1)
    whole = torch.cat([x, x], 1)
    run.after("layer", 5, 1, None, (whole, whole))
    assert torch.equal(run.features, whole[:2])  # type: ignore[attr-defined]


def test_constant_features_keep_a_lattice() -> None:
    x = torch.randn(2, 1, 12).expand(2, N, 12)
    for normalise in ("mean", "raw"):
        assert torch.equal(
            chosen(x, normalise=normalise).rows(0, 1).indices, lattice(GRID, 64).indices
        )


def test_nan_features_keep_a_lattice_for_that_image_and_say_so_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select, "_NAN_WATCH", select._NanWatch())
    x = features()
    x[1, 3, 2] = float("nan")
    with caplog.at_level(logging.WARNING):
        keep = chosen(x)
        chosen(x)
    assert torch.equal(keep.rows(1, 2).indices, lattice(GRID, 64).indices)
    assert torch.equal(keep.rows(0, 1).indices, chosen(features()).rows(0, 1).indices)
    assert len(caplog.records) == 1


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"restore": "code_copy", "scope": "layer"}, "restore is code_copy with scope layer"),
    ({"restore": "code_zero", "layers": (0.0, 0.5)}, "layers that end at 1"),
    ({"scored_rows": "own"}, "scored_rows is own with scope scale"),
    ({"kv_write": "propagate", "scope": "branch"}, "kv_write is propagate"),
    ({"min_coverage": 1}, "min_coverage is 1"),
    ({"layers": (0.5, 0.5)}, "holds no layer"),
    ({"scored_layer": 1.0, "scope": "layer"}, "scored_layer is 1.0 with scope layer"),
    ({"scored_layer": 1.0, "scales": {"0": ScaleRule(keep_ratio=0.5)}}, "first scale that runs"),
    ({"scales": {"-8": ScaleRule(keep_ratio=0.5)}}, r"scales\.-8"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_settings_that_exclude_each_other_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        StepVARPolicy(**settings).start(request())


def test_a_dense_policy_prunes_no_tokens() -> None:
    with pytest.raises(UserError, match="allowed: 1"):
        DensePolicy(scales={"-1": ScaleRule(keep_ratio=0.5)}).start(request())


@pytest.mark.parametrize("kind", POLICIES)
def test_settings_files_reach_every_kind(kind: str) -> None:
    adapter: TypeAdapter[Policy] = TypeAdapter(Annotated[Policy, Field(discriminator="kind")])
    policy = adapter.validate_python({"kind": kind})
    assert policy == POLICIES[kind]()
    assert policy.name == kind


def test_ranges_are_checked_at_the_door() -> None:
    adapter = TypeAdapter(StepVARPolicy)
    policy = adapter.validate_python({"scales": {-1: {"keep_ratio": 0.5}, "-2": {"run": False}}})
    assert policy.scales == {-1: ScaleRule(keep_ratio=0.5), "-2": ScaleRule(run=False)}
    for wrong in (
        {"structure_share": 1.5},
        {"iterations": 0},
        {"components": 0},
        {"min_coverage": -1},
        {"scales": {"-1": {"keep_ratio": 0.0}}},
        {"restore": "nearest"},
        {"normalise": "min"},
    ):
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)


def test_pruned_layers_compute_kept_tokens_only() -> None:
    """Inside the range every block sees the kept tokens of each row, outside all of them."""
    model, text = toy_model(), toy_text(toy_model(), (3, 5))
    seen: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for index, block in enumerate(model.layers()):
        block.register_forward_hook(lambda _m, _i, out, k=index: seen[k].append(out.shape[1]))
    toy_run(model, text, policy=StepVARPolicy(layers=(0.34, 0.67)))
    tokens = [1, 4, 16, 36, 64, 144, 256]
    assert seen[0] == seen[2] == tokens
    assert seen[1] == [1, 4, 16, 22, 32, 72, 128]


@pytest.mark.parametrize(
    ("rule", "changes", "words"),
    [
        ({"rows": "uncond"}, {"guidance_rows": 1}, "rows is uncond"),
        ({"rows": "uncond"}, {"guided": (True,) * 9 + (False,)}, "rows is uncond"),
        ({"rows": "uncond"}, {"rows_live": False}, "rows is uncond"),
        ({"guidance": 4.0}, {"guidance_rows": 1}, "guidance is 4.0"),
        ({"guidance": 4.0}, {"guided": (True,) * 9 + (False,)}, "guidance is 4.0"),
    ],
)
def test_rules_about_rows_that_do_not_run_are_refused(
    rule: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    policy = StepVARPolicy(scales={"-1": ScaleRule(**rule)})
    with pytest.raises(UserError, match=words):
        policy.start(request(schedule=scale_schedule(1.0, "0.25M"), **changes))
