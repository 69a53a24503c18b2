"""The unconditional rows: where they meet the others, and when they end."""

import pytest
import torch
from scripted import GUIDANCE, Scripted
from torch import Tensor

from infinity.sampling.loop import ScaleEnd
from infinity.schedule import scale_schedule
from infinity.transformer.guidance import Guidance
from tests.toy import toy_model, toy_run, toy_settings, toy_text


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
