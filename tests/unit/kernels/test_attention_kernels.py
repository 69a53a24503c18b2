"""The kernels that attend, to few tokens and to the text, against their torch functions."""

from itertools import pairwise

import pytest
import torch
from kernel_cases import DTYPE, LIMIT, ROWS, close, devices, draw
from torch import Tensor

from infinity.ops.fused import attention, small_attention, text_attention
from infinity.ops.fused.residual_norm import Quantised
from infinity.ops.fused.rotate import Phases, Slots


def boundaries(counts: tuple[int, ...], device: str) -> Tensor:
    return torch.tensor((0, *counts), dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)


@devices
@pytest.mark.parametrize(("per_row", "start"), [(1, 0), (4, 5), (16, 70), (13, 3)])
@pytest.mark.parametrize(("heads", "dim"), [(2, 32), (3, 24)])
def test_small_attention(device: str, per_row: int, start: int, heads: int, dim: int) -> None:
    dtype, rows = DTYPE[device], 2
    qkv = draw(rows * per_row, 3, heads, dim, device=device, dtype=dtype)
    scale = draw(heads, device=device).exp()
    angles = draw(200, dim // 2, device=device)
    places = torch.randperm(90)[:per_row].repeat(rows).to(device)
    phases = Phases(angles.cos(), angles.sin(), places, 10)
    before = draw(2, rows, 150, heads, dim, device=device, dtype=dtype)
    results = []
    for function in (small_attention.small_attention, small_attention.reference):
        memory = before.clone()
        slots = Slots(memory[0], memory[1], start)
        results.append((function(qkv, scale, phases, per_row, slots), memory))
    for fast, exact in zip(*results, strict=True):
        close(fast, exact, 2 * LIMIT[dtype])
    new = slice(start, start + per_row)
    for _, memory in results:
        memory[:, :, new] = before[:, :, new]
        assert torch.equal(memory, before)


@devices
@pytest.mark.parametrize(("per_row", "seen"), [(1, 1), (36, 57), (65, 128), (130, 64), (100, 200)])
@pytest.mark.parametrize(("heads", "dim"), [(2, 32), (3, 24), (1, 128)])
def test_attention_to_a_padded_cache(
    device: str, per_row: int, seen: int, heads: int, dim: int
) -> None:
    q = 3 * draw(2 * per_row, heads, dim, device=device, dtype=DTYPE[device])
    memory = draw(2, 2, seen + 70, heads, dim, device=device, dtype=DTYPE[device])
    exact = attention.reference(q, memory[0], memory[1], seen, dim**-0.5)
    memory[:, :, seen:] = 1e4
    fast = attention.attention(q, memory[0], memory[1], seen, dim**-0.5)
    close(fast, exact, LIMIT[DTYPE[device]])


@devices
@pytest.mark.parametrize("counts", [*ROWS, (70, 70), (20, 1)])
@pytest.mark.parametrize("text", [(3, 5, 4), (1, 70, 130)])
@pytest.mark.parametrize(("heads", "dim"), [(2, 32), (3, 24)])
def test_text_attention(
    device: str, counts: tuple[int, ...], text: tuple[int, ...], heads: int, dim: int
) -> None:
    text = text[: len(counts)]
    q = draw(sum(counts), heads, dim, device=device, dtype=DTYPE[device])
    kv = draw(sum(text) + 9, 2, heads, dim, device=device, dtype=DTYPE[device])
    cu_q, cu_text = boundaries(counts, device), boundaries(text, device) + 2
    exact = text_attention.reference(q, kv, cu_q, cu_text, dim**-0.5)
    kv[:2], kv[2 + sum(text) :] = 1e4, 1e4
    for longest in (None, max(text)):
        fast = text_attention.text_attention(
            q, kv, cu_q, cu_text, max(counts), dim**-0.5, longest=longest
        )
        close(fast, exact, LIMIT[DTYPE[device]])


@devices
@pytest.mark.parametrize("counts", [(5, 3, 8), (70, 70), (20, 1)])
@pytest.mark.parametrize("text", [(3, 5, 4), (1, 70, 130)])
def test_text_attention_in_fp8(device: str, counts: tuple[int, ...], text: tuple[int, ...]) -> None:
    heads, dim, text = 3, 24, text[: len(counts)]
    q = draw(sum(counts), heads, dim, device=device, dtype=DTYPE[device])
    kv = draw(sum(text) + 9, 2, heads, dim, device=device, dtype=DTYPE[device])
    cu_q, cu_text = boundaries(counts, device), boundaries(text, device) + 2
    kv[:2], kv[2 + sum(text) :] = 1e4, 1e4
    limits = text_attention.largest_values([kv], cu_text)[0]
    for row, (start, stop) in enumerate(pairwise(cu_text.tolist())):
        assert limits[row] == kv[start:stop, 1].abs().max()
    words = (q, kv, cu_q, cu_text)
    fast = text_attention.text_attention(*words, max(counts), dim**-0.5, limits)
    exact = text_attention.reference(*words, dim**-0.5, limits)
    assert isinstance(fast, Quantised)
    assert isinstance(exact, Quantised)
    assert torch.equal(fast.scale, exact.scale)
    assert not fast.values.isnan().any()
    given = [each.values.float() * each.scale[:, None] for each in (fast, exact)]
    # Weights in bf16 tip some results over to the next number in fp8.
    close(*given, 0.12 if device == "cpu" else 4e-2)
    plain = text_attention.reference(*words, dim**-0.5)
    assert isinstance(plain, Tensor)
    close(given[0], plain.flatten(1), 0.12 if device == "cpu" else 5e-2)
