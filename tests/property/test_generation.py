"""Invariants of the scale loop that every policy relies on."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from infinity.policy import (
    DENSE_SCALE,
    Branch,
    BranchPlan,
    DenseRun,
    PolicyRequest,
    PolicyRun,
    RestoreContext,
    ScalePlan,
    ScaleView,
)
from infinity.sampling.loop import ScaleEnd
from infinity.sampling.noise import PerImageNoise
from infinity.schedule import TEMPLATES, scale_schedule
from infinity.text.base import TextFeatures
from infinity.tokens import KeepSet, PackedTokens, pack, pack_all, unpack
from infinity.transformer.guidance import Guidance, guide
from infinity.transformer.stack import BlockStack
from tests.toy import remembered_calls, toy_model, toy_run, toy_settings, toy_text


def overwrite(fresh: PackedTokens, context: RestoreContext) -> Tensor:
    """Pruned positions keep the stream they had."""
    return unpack(fresh, context.before)


def overwrite_change(fresh: PackedTokens, context: RestoreContext) -> Tensor:
    return unpack(fresh, torch.zeros_like(context.before))


@dataclass(frozen=True)
class Scripted:
    """Keeps ``counts`` positions per image at the last scales, evenly spread; ``plan`` adds to
    it.
    """

    counts: tuple[int, ...] | None = None
    scales: int = 2
    plan: dict[str, Any] = field(default_factory=dict)
    inside: Literal["layer", "branch"] | None = None
    name: str = "scripted"

    def start(self, request: PolicyRequest) -> PolicyRun:
        return ScriptedRun(request, self)


class ScriptedRun(DenseRun):
    def __init__(self, request: PolicyRequest, script: Scripted) -> None:
        super().__init__(request)
        self.script = script

    def keep(self, positions: int, device: torch.device) -> KeepSet:
        counts = self.script.counts or (positions,) * self.request.images
        rows = [
            torch.arange(n, device=device) * positions // n
            for n in (min(c, positions) for c in counts)
        ]
        return KeepSet(torch.cat(rows), tuple(len(r) for r in rows))

    def plan_scale(self, si: int, view: ScaleView) -> ScalePlan:
        if si < len(self.request.schedule) - self.script.scales:
            return DENSE_SCALE
        plan = self.script.plan
        if self.script.inside:
            return ScalePlan(inside=self.script.inside, **plan)
        keep = self.keep(view.grid[0] * view.grid[1], view.x.device)
        restore = {} if "restore_codes" in plan else {"restore": overwrite}
        return ScalePlan(keep=keep, **restore, **plan)

    def plan_branch(self, si: int, layer: int, branch: Branch, x: Tensor) -> BranchPlan | None:
        restore = overwrite if branch == "layer" else overwrite_change
        return BranchPlan(self.keep(x.shape[1], x.device), restore)


@dataclass(frozen=True)
class Answering:
    """Plans every scale with a function."""

    answer: Callable[[int], ScalePlan]
    name: str = "answering"

    def start(self, request: PolicyRequest) -> PolicyRun:
        run = DenseRun(request)
        run.plan_scale = lambda si, view: self.answer(si)  # type: ignore[method-assign]
        return run


GUIDANCE = {
    "logits": Guidance(frozenset(), True),
    "hidden": Guidance(frozenset({1}), False),
    "both": Guidance(frozenset({0}), True),
}


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("guidance", [*GUIDANCE, "off"])
@pytest.mark.parametrize("inside", [None, "layer", "branch"])
def test_keeping_everything_is_dense_bit_for_bit(
    images: int, guidance: str, inside: str | None
) -> None:
    model, schedule = toy_model(), scale_schedule(1.0, "0.06M")
    text = toy_text(model, (3, 5, 4)[:images])
    sampling = toy_settings(
        schedule,
        guidance_scale=1.0 if guidance == "off" else 3.0,
        guidance=GUIDANCE.get(guidance),
    )
    dense = toy_run(model, text, schedule, settings=sampling)
    pruned = toy_run(model, text, schedule, settings=sampling, policy=Scripted(inside=inside))
    assert torch.equal(dense, pruned)


@pytest.mark.parametrize("patchify", [False, True])
@pytest.mark.parametrize("ratio", list(TEMPLATES))
def test_every_aspect_ratio_runs_dense_and_ragged(ratio: float, patchify: bool) -> None:
    model, schedule = toy_model(patchify=patchify, depth=2), scale_schedule(ratio, "0.06M")
    text = toy_text(model, (3, 5))
    policy = Scripted(counts=(40, 17))
    dense = toy_run(model, text, schedule)
    ragged = toy_run(model, text, schedule, policy=policy)
    assert (
        dense.shape
        == ragged.shape
        == (2, model.config.codebook_dim, *schedule.latent_grids(patchify)[-1])
    )
    assert not torch.equal(dense, ragged)


@pytest.mark.parametrize("counts", [None, (40, 17, 90)])
def test_an_image_does_not_depend_on_its_batch(counts: tuple[int, ...] | None) -> None:
    model = toy_model()
    text = toy_text(model, (3, 7, 5))

    together: list[ScaleEnd] = []
    toy_run(model, text, policy=Scripted(counts=counts), on_scale_end=together)
    alone: list[ScaleEnd] = []
    toy_run(
        model,
        toy_text(model, (3,)),
        policy=Scripted(counts=counts[:1] if counts else None),
        on_scale_end=alone,
    )
    for a, b in zip(together, alone, strict=True):
        n = b.logits.shape[0]
        torch.testing.assert_close(a.logits[:n], b.logits, atol=2e-5, rtol=0)
        assert torch.equal(a.bits[:1], b.bits)


def test_a_shuffled_batch_gives_shuffled_images() -> None:
    model = toy_model()
    rows = toy_text(model, (4, 4, 4)).split()
    order = [2, 0, 1]
    plain = toy_run(model, TextFeatures.stack(rows), noise=PerImageNoise([5, 6, 7], "cpu"))
    shuffled = toy_run(
        model,
        TextFeatures.stack([rows[i] for i in order]),
        noise=PerImageNoise([5 + i for i in order], "cpu"),
    )
    torch.testing.assert_close(shuffled, plain[order], atol=1e-6, rtol=0)


def test_pruning_one_image_leaves_the_other_alone() -> None:
    model, text = toy_model(), toy_text(toy_model(), (3, 5))
    positions = 16 * 16
    dense = toy_run(model, text)
    half = toy_run(model, text, policy=Scripted(counts=(positions, 30), scales=1))
    torch.testing.assert_close(half[0], dense[0], atol=1e-5, rtol=0)
    assert not torch.allclose(half[1], dense[1], atol=1e-3)


def test_cache_holds_what_was_written_and_nothing_of_the_last_scale(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, schedule = toy_model(), scale_schedule(1.0, "0.06M")
    calls = remembered_calls(monkeypatch)
    lengths: list[tuple[int, ...]] = []
    original = BlockStack.run

    def watched(self: BlockStack, si: int, *args: Any) -> Any:
        out = original(self, si, *args)
        lengths.append(self.call.caches[0].lengths)
        return out

    monkeypatch.setattr(BlockStack, "run", watched)
    toy_run(model, toy_text(model, (3, 5)), policy=Scripted(counts=(20, 30)))
    dense = [sum(schedule.tokens_per_scale[: k + 1]) for k in range(5)]
    assert [entry[0] for entry in lengths[:5]] == dense
    assert lengths[5] == (dense[-1] + 20, dense[-1] + 30) * 2
    assert lengths[6] == lengths[5]
    assert calls[0].caches[0].capacity == schedule.offsets[-2]


def test_unconditional_rows_end_with_the_last_guidance(monkeypatch: pytest.MonkeyPatch) -> None:
    model, schedule = toy_model(), scale_schedule(1.0, "0.06M")
    text = toy_text(model, (3, 5))
    seen: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for index, block in enumerate(model.layers()):
        block.register_forward_hook(lambda _m, _i, out, k=index: seen[k].append(out.shape[0]))
    scales = (3.0, 3.0, 3.0, 3.0, 1.0, 1.0, 1.0)
    toy_run(model, text, settings=toy_settings(schedule, guidance_scale=scales))
    assert seen[0] == [4] * 4 + [2] * 3
    for counts in seen.values():
        counts.clear()
    toy_run(model, text, settings=toy_settings(schedule, guidance=GUIDANCE["hidden"]))
    assert seen[1] == [4] * 7
    assert seen[2] == [2] * 7


def test_guidance_after_the_last_block_and_on_logits_replaces_both_halves() -> None:
    """Spec §7.1: hidden guidance writes the mixture into both halves, and the head reads both."""
    model, schedule = toy_model(), scale_schedule(1.0, "0.06M")
    text = toy_text(model, (3,))
    last: list[Tensor] = []
    list(model.layers())[-1].register_forward_hook(lambda _m, _i, out: last.append(out))
    scales: list[ScaleEnd] = []
    guidance = Guidance(frozenset({2}), True)
    toy_run(
        model,
        text,
        settings=toy_settings(schedule, guidance_scale=2.0, guidance=guidance),
        on_scale_end=scales,
    )
    sos = model.condition(model.with_unconditional(text)).sos
    mixed = 2.0 * last[0][:1] - last[0][1:]
    cond, uncond = model.logits(torch.cat([mixed, mixed]), sos[:, None])
    torch.testing.assert_close(scales[0].logits, 2.0 * cond - uncond, atol=1e-5, rtol=0)


def test_dropping_unread_rows_changes_nothing() -> None:
    """Guidance on the first scales only: the same codes as with the unconditional half kept."""
    model, schedule = toy_model(), scale_schedule(1.0, "0.06M")
    text = toy_text(model, (3, 5))
    ends = (3.0,) * 4 + (1.0,) * 3
    kept = (3.0,) * 4 + (1.0, 1.0, 1.0 + 1e-12)
    a = toy_run(model, text, settings=toy_settings(schedule, guidance_scale=ends))
    b = toy_run(model, text, settings=toy_settings(schedule, guidance_scale=kept))
    assert torch.equal(a, b)


@pytest.mark.parametrize("rows", ["cond", "uncond"])
def test_rows_can_be_dropped_by_a_plan(rows: str) -> None:
    model, text = toy_model(), toy_text(toy_model(), (3, 5))
    policy = Scripted(plan={"rows": rows, "guidance": 1.0})
    out = toy_run(model, text, policy=policy)
    assert out.isfinite().all()
    assert not torch.equal(out, toy_run(model, text))


def test_a_policy_hears_logits_that_no_temperature_has_scaled() -> None:
    model, schedule, heard = toy_model(), scale_schedule(1.0, "0.06M"), list[Tensor]()

    class Hearing(DenseRun):
        events = frozenset({"logits"})

        def after(self, event: str, si: int, layer: int, branch: Branch | None, data: Any) -> None:
            heard.append(guide(*data, 3.0) / temperatures[si])

    @dataclass(frozen=True)
    class Listener:
        name: str = "listener"

        def start(self, request: PolicyRequest) -> PolicyRun:
            return Hearing(request)

    temperatures = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
    sampling = replace(toy_settings(schedule), temperature=temperatures)
    ends: list[ScaleEnd] = []
    text = toy_text(model, (3, 5))
    toy_run(model, text, schedule, settings=sampling, policy=Listener(), on_scale_end=ends)
    for logits, end in zip(heard, ends, strict=True):
        torch.testing.assert_close(logits, end.logits, atol=1e-4, rtol=1e-4)


def test_skipped_scales_add_nothing() -> None:
    model, text = toy_model(), toy_text(toy_model(), (3,))
    scales: list[ScaleEnd] = []
    skip_last = Answering(lambda si: ScalePlan(run=si < 5))
    stop_early = Answering(lambda si: ScalePlan(stop_after=si == 4))
    skipped = toy_run(model, text, policy=skip_last, on_scale_end=scales)
    assert len(scales) == 5
    assert torch.equal(skipped, toy_run(model, text, policy=stop_early))


def test_codes_can_be_made_dense_instead_of_the_stream() -> None:
    model, text = toy_model(), toy_text(toy_model(), (3, 5))

    def zero_codes(codes: Tensor, keep: KeepSet, view: ScaleView) -> Tensor:
        packed = pack(torch.zeros(2, view.grid[0] * view.grid[1], codes.shape[-1]), keep)
        return unpack(
            packed.with_x(codes), torch.zeros(2, view.grid[0] * view.grid[1], codes.shape[-1])
        )

    everything = toy_run(model, text, policy=Scripted(plan={"restore_codes": zero_codes}))
    assert torch.equal(everything, toy_run(model, text))
    some = toy_run(model, text, policy=Scripted(counts=(9, 30), plan={"restore_codes": zero_codes}))
    assert some.isfinite().all()


def test_propagated_keys_equal_dense_ones_when_everything_is_kept() -> None:
    model, text = toy_model(), toy_text(toy_model(), (3, 5))

    class PropagatingRun(ScriptedRun):
        def plan_scale(self, si: int, view: ScaleView) -> ScalePlan:
            keep = self.keep(view.grid[0] * view.grid[1], view.x.device)
            source = keep.indices.view(len(keep.counts), -1)
            return ScalePlan(keep=keep, restore=overwrite, kv_write="propagate", kv_source=source)

    class Propagating(Scripted):
        def start(self, request: PolicyRequest) -> PolicyRun:
            return PropagatingRun(request, self)

    a: list[ScaleEnd] = []
    b: list[ScaleEnd] = []
    toy_run(model, text, policy=Propagating(), on_scale_end=a)
    toy_run(model, text, on_scale_end=b)
    torch.testing.assert_close(a[-1].logits, b[-1].logits, atol=2e-5, rtol=0)


def test_layers_outside_the_pruned_range_cache_their_own_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, schedule = toy_model(), scale_schedule(1.0, "0.06M")
    calls = remembered_calls(monkeypatch)

    def propagate(si: int) -> ScalePlan:
        if si != 4:
            return DENSE_SCALE
        keep = KeepSet.of_rows(torch.tensor([[0, 30]]))
        source = torch.arange(64)[None] // 32
        return ScalePlan(
            keep=keep,
            restore=overwrite,
            layers=(1, 2),
            kv_write="propagate",
            kv_source=source,
        )

    text = toy_text(model, (3,))
    toy_run(model, text, policy=Answering(propagate))
    toy_run(model, text)
    end = schedule.offsets[5]
    pruned, dense = (call.caches for call in calls)
    assert torch.equal(pruned[0].k[:, :end], dense[0].k[:, :end])
    assert not torch.equal(pruned[1].k[:, :end], dense[1].k[:, :end])


def test_contradicting_plans_are_refused() -> None:
    keep = KeepSet(torch.tensor([0]), (1,))
    with pytest.raises(ValueError, match="exactly one of"):
        ScalePlan(keep=keep)
    with pytest.raises(ValueError, match="not both"):
        ScalePlan(keep=keep, restore=overwrite, inside="layer")
    with pytest.raises(ValueError, match="belong together"):
        ScalePlan(kv_write="propagate")
    with pytest.raises(ValueError, match="at least one position"):
        KeepSet(torch.tensor([0]), (1, 0))
    model, text = toy_model(), toy_text(toy_model(), (3,))
    with pytest.raises(ValueError, match="must lie inside"):
        toy_run(model, text, policy=Scripted(plan={"layers": (2, 9)}))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_unpack_inverts_pack(data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 4))
    n = data.draw(st.integers(1, 12))
    chosen = [
        sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1, max_size=n)))
        for _ in range(rows)
    ]
    keep = KeepSet(torch.tensor([i for row in chosen for i in row]), tuple(map(len, chosen)))
    x = torch.randn(rows, n, 3)
    packed = pack(x, keep)
    assert packed.cu_seqlens.tolist() == [sum(keep.counts[:k]) for k in range(rows + 1)]
    assert torch.equal(unpack(packed, x), x)
    blank = unpack(packed, torch.zeros_like(x))
    for row, positions in enumerate(chosen):
        mask = torch.zeros(n, dtype=torch.bool)
        mask[positions] = True
        assert torch.equal(blank[row, mask], x[row, mask])
        assert blank[row, ~mask].abs().sum() == 0
        part = packed.slice_rows(row, rows)
        assert torch.equal(part.x[: len(positions)], x[row, positions])
    assert torch.equal(pack_all(x).x, x.reshape(rows * n, 3))
