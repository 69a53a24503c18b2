"""What the cache holds of pruned tokens, and codes that are made dense."""

from typing import Any

import pytest
import torch
from scripted import Answering, Scripted, ScriptedRun, overwrite
from torch import Tensor

from infinity.policy import DENSE_SCALE, PolicyRequest, PolicyRun, ScalePlan, ScaleView
from infinity.sampling.loop import ScaleEnd
from infinity.schedule import scale_schedule
from infinity.tokens import KeepSet, pack, unpack
from infinity.transformer.stack import BlockStack
from tests.toy import remembered_calls, toy_model, toy_run, toy_text


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
