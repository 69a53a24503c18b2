"""Invariants of the scale loop that every policy relies on."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import GUIDANCE, Answering, Scripted, overwrite
from torch import Tensor

from infinity.policy import Branch, DenseRun, PolicyRequest, PolicyRun, ScalePlan
from infinity.sampling.loop import ScaleEnd
from infinity.sampling.noise import PerImageNoise
from infinity.schedule import TEMPLATES, scale_schedule
from infinity.text.base import TextFeatures
from infinity.tokens import KeepSet, pack, pack_all, unpack
from infinity.transformer.guidance import guide
from tests.toy import toy_model, toy_run, toy_settings, toy_text


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
