"""The Triton kernels against the torch functions that define them.

Runs on CPU tensors with ``TRITON_INTERPRET=1`` where triton is installed, and with ``-m gpu`` on a
CUDA device.
"""

import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from infinity.errors import UserError
from infinity.ops.fused import (
    embed,
    group_norm,
    mean_distance,
    nearest,
    principal,
    quantise,
    residual_norm,
    rotate,
    roughness,
    sample,
    small_attention,
    spread,
    support,
    text_attention,
    top,
    uniform,
)
from infinity.ops.fused.residual_norm import Affine, Branch, Quantised, RowsOf
from infinity.ops.fused.rotate import Phases, Slots
from infinity.sampling import bits
from infinity.sampling.noise import philox_4x32
from infinity.tokens import KeepSet
from stepvar_patch import upsample
from stepvar_patch.scores import structure

CPU = pytest.param(
    "cpu",
    marks=pytest.mark.skipif(
        not support.INTERPRETED or support.triton is None,
        reason="needs triton and TRITON_INTERPRET=1",
    ),
)
CUDA = pytest.param("cuda", marks=pytest.mark.gpu)
devices = pytest.mark.parametrize("device", [CPU, CUDA])
DTYPE = {"cpu": torch.float32, "cuda": torch.bfloat16}
# Triton's interpreter cuts fp8 off instead of rounding it.
FP8_LIMIT = {"cpu": 8e-2, "cuda": 1e-2}
LIMIT = {torch.float32: 3e-6, torch.bfloat16: 6e-3}


def draw(*shape: int, device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(device, dtype)


def close(fast: Tensor, exact: Tensor, limit: float) -> None:
    error = (fast.float() - exact.float()).norm() / exact.float().norm()
    assert error <= limit, f"relative error {error:.2e}"


def boundaries(counts: tuple[int, ...], device: str) -> Tensor:
    return torch.tensor((0, *counts), dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)


def rows_of(counts: tuple[int, ...], device: str) -> RowsOf:
    if len(set(counts)) == 1:
        return RowsOf(counts[0])
    ids = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(device)
    return RowsOf(max(counts), ids)


ROWS = [(7, 7), (1, 1), (5, 3, 8)]


@devices
@pytest.mark.parametrize("counts", ROWS)
@pytest.mark.parametrize("width", [64, 96, 130])
@pytest.mark.parametrize(
    "kind", ["modulated", "affine", "bare", "first", "quantised", "affine quantised"]
)
def test_residual_norm(device: str, counts: tuple[int, ...], width: int, kind: str) -> None:
    total, b = sum(counts), len(counts)
    x = draw(total, width, device=device) + 3
    mods = draw(b, 6, width, device=device)
    affine: Affine | None = Affine(mods[:, 2], mods[:, 4])
    if "affine" in kind:
        affine = Affine(mods[0, 0].contiguous(), mods[0, 1].contiguous())
    branch: Branch | None = Branch(
        draw(total, width, device=device, dtype=DTYPE[device]),
        None if "affine" in kind else mods[:, 0],
    )
    affine, branch = (None if kind == "bare" else affine), (None if kind == "first" else branch)
    arguments = {"eps": 1e-6, "dtype": DTYPE[device], "quantise": "quantised" in kind}
    rows = rows_of(counts, device)
    exact = residual_norm.reference(x, rows, affine, branch, **arguments)
    fast = residual_norm.residual_norm(x.clone(), rows, affine, branch, **arguments)
    assert torch.equal(fast[0], exact[0])
    if kind == "bare":
        assert fast[1] is None
    elif "quantised" in kind:
        unpacked = [q.values.float() * q.scale[:, None] for q in (fast[1], exact[1])]
        close(*unpacked, FP8_LIMIT[device])
    else:
        close(fast[1], exact[1], LIMIT[DTYPE[device]])


@devices
def test_tokens_that_share_a_program(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residual_norm, "_MANY", 1)
    x, y = (draw(12, 64, device=device) + i for i in range(2))
    mods = draw(3, 6, 64, device=device)
    words = RowsOf(4), Affine(mods[:, 2], mods[:, 4]), Branch(y, mods[:, 0])
    fast, exact = (
        f(x, *words, eps=1e-6, dtype=torch.float32, quantise=False)
        for f in (residual_norm.residual_norm, residual_norm.reference)
    )
    assert torch.equal(fast[0], exact[0])
    close(fast[1], exact[1], 3e-6)


@devices
def test_the_stream_may_be_written_in_place(device: str) -> None:
    x, y = (draw(6, 64, device=device) for _ in range(2))
    kept = x.clone()
    stream, _ = residual_norm.residual_norm(x, RowsOf(3), None, Branch(y), out=x)
    assert stream is x
    assert torch.equal(x, kept + y)


@devices
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("width", [64, 130])
def test_quantise(device: str, gelu: bool, width: int) -> None:
    x = 4 * draw(5, width, device=device, dtype=DTYPE[device])
    fast, exact = (f(x, gelu=gelu) for f in (quantise.quantise, quantise.reference))
    close(fast.scale, exact.scale, 1e-5)
    close(*(q.values.float() * q.scale[:, None] for q in (fast, exact)), FP8_LIMIT[device])
    wanted = torch.nn.functional.gelu(x.float(), approximate="tanh") if gelu else x
    close(fast.values.float() * fast.scale[:, None], wanted, max(FP8_LIMIT[device], 4e-2))


@devices
@pytest.mark.parametrize("launch", [quantise.Launch(1, 8), quantise.Launch(4, 4)])
def test_quantise_divided_otherwise(device: str, launch: quantise.Launch) -> None:
    x = draw(7, 130, device=device, dtype=DTYPE[device])
    x[2], x[3] = 0.0, 1e4
    exact = quantise.quantise(x, gelu=True)
    fast = quantise.quantise(x, gelu=True, launch=launch)
    assert torch.equal(fast.values.float(), exact.values.float())
    assert torch.equal(fast.scale, exact.scale)
    assert not fast.values.float().isnan().any()


@devices
@pytest.mark.parametrize("counts", ROWS)
@pytest.mark.parametrize(("heads", "dim"), [(2, 32), (3, 24), (4, 64)])
def test_rotate_and_cache(device: str, counts: tuple[int, ...], heads: int, dim: int) -> None:
    total, b, dtype = sum(counts), len(counts), DTYPE[device]
    qkv = draw(total, 3, heads, dim, device=device, dtype=dtype)
    scale = draw(heads, device=device).exp()
    angles = draw(40, dim // 2, device=device)
    phases = Phases(angles.cos(), angles.sin(), torch.randperm(30)[:total].to(device), 10)
    rows = rows_of(counts, device)
    ids = None
    if rows.ids is not None:
        inside = torch.cat([torch.arange(c) for c in counts])
        ids = (inside + torch.tensor((2, 0, 5)).repeat_interleave(torch.tensor(counts))).to(device)
    results = []
    for function in (rotate.rotate_and_cache, rotate.reference):
        memory = torch.zeros(2, b, 3, 16, heads, dim, device=device, dtype=dtype)
        slots = Slots(memory[0, :, 1], memory[1, :, 1], 4, ids)
        q = function(qkv, scale, phases, rows, slots)
        results.append((q, memory))
    for fast, exact in zip(*results, strict=True):
        close(fast, exact, LIMIT[dtype])
    assert torch.equal(results[0][1] == 0, results[1][1] == 0)


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
    fast = text_attention.text_attention(q, kv, cu_q, cu_text, max(counts), dim**-0.5)
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


@devices
@pytest.mark.parametrize("count", [1, 7, 64, 5000])
def test_philox(device: str, count: int) -> None:
    seeds = torch.tensor([0, 5, (1 << 62) + 12345], device=device)
    block = torch.arange(-(-count // 4), device=device)[None]
    zero = torch.zeros_like(block)
    words = philox_4x32(
        (block, zero, zero + 11, zero), (seeds[:, None] & 0xFFFFFFFF, seeds[:, None] >> 32)
    )
    exact = ((torch.stack(words, -1) >> 9).float() + 0.5) * 2.0**-23
    assert torch.equal(uniform.philox_uniform(seeds, 11, count), exact.flatten(1)[:, :count])


@devices
@pytest.mark.parametrize(("h", "w"), [(3, 5), (16, 16), (40, 37)])
@pytest.mark.parametrize(("channels", "groups"), [(32, 32), (64, 32), (96, 32), (48, 24)])
def test_decoder_kernels(device: str, h: int, w: int, channels: int, groups: int) -> None:
    dtype = DTYPE[device]
    x, y = (draw(2, h * w, channels, device=device, dtype=dtype) for _ in range(2))
    x = x + 20
    bias, weight, shift = (draw(channels + i, device=device)[:channels] for i in range(3))
    total, moments = group_norm.add(x, y, bias)
    assert torch.equal(total, group_norm.reference_add(x, y, bias))
    same, again = group_norm.add(total, None, None)
    assert same is total
    close(again.mean, moments.mean, 1e-6)
    for offset in (None, bias):
        fast = group_norm.norm_silu(total, moments, offset, weight, shift, groups, 1e-6)
        exact = group_norm.reference_norm(total, offset, weight, shift, groups, 1e-6)
        close(fast, exact, max(LIMIT[dtype], 2e-5))
    grid = draw(2, h + 1, w + 1, 4 * channels, device=device, dtype=dtype) + 20
    big, moments = group_norm.interleave(grid)
    assert torch.equal(big, group_norm.reference_interleave(grid))
    _, again = group_norm.add(big, None, None)
    close(moments.mean, again.mean, 1e-6)
    close(moments.square, again.square, 1e-5)


@devices
@pytest.mark.parametrize(("n", "count"), [(1, 1), (7, 3), (64, 64), (100, 37), (1600, 800)])
def test_top_scores(device: str, n: int, count: int) -> None:
    scores = draw(5, n, device=device)
    scores[0] = (2 * scores[0]).round()
    scores[1], scores[2, n // 2], scores[3] = 3.0, float("nan"), 0.0
    scores[3, ::2] = -0.0
    even = draw(n, device=device)
    fast, exact = (f(scores, even, count) for f in (top.top_scores, top.reference))
    for name in ("indices", "bad"):
        assert torch.equal(getattr(fast, name), getattr(exact, name)), name


@devices
@pytest.mark.parametrize(("n", "width"), [(1, 64), (37, 130), (200, 96)])
def test_mean_distance(device: str, n: int, width: int) -> None:
    x = draw(2, n, width, device=device) + 5
    x[1] = x[1, :1].clone()
    fast, exact = (f(x) for f in (mean_distance.mean_distance, mean_distance.reference))
    torch.testing.assert_close(fast[0], exact[0], rtol=1e-5, atol=1e-4)
    assert not fast[1].any()


@devices
@pytest.mark.parametrize("iterations", [1, 5])
@pytest.mark.parametrize("started", [False, True])
def test_first_direction(
    device: str, iterations: int, started: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = draw(3, 37, 130, device=device) + 5
    x[1] = x[1, :1].clone()
    start = draw(3, 130, device=device) if started else None
    if start is not None:
        start[2] = 0
    fast = principal.first_direction(x, iterations, start)
    length = principal.projection_length(x, fast)
    monkeypatch.setattr(structure, "_fused", lambda x: False)
    given = None if start is None else start[:, :, None]
    exact = structure.principal_directions(x, iterations=iterations, start=given)
    torch.testing.assert_close(fast, exact[:, :, 0], rtol=1e-4, atol=1e-5)
    assert not fast[1].any()
    torch.testing.assert_close(length, structure.structure_score(x, exact), rtol=1e-3, atol=1e-4)


GRIDS = [(1, 1), (1, 7), (9, 1), (5, 7), (8, 8), (12, 20)]


@devices
@pytest.mark.parametrize("grid", GRIDS)
def test_roughness(device: str, grid: tuple[int, int]) -> None:
    x = draw(2, grid[0] * grid[1], 40, device=device) + 3
    x[1] = 1.1
    fast, exact = (f(x, grid) for f in (roughness.roughness, roughness.reference))
    torch.testing.assert_close(fast[0], exact[0], rtol=1e-5, atol=1e-4)
    assert not fast[1].any()


@devices
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_nearest_places(
    device: str, grid: tuple[int, int], share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    n = grid[0] * grid[1]
    count = max(1, round(share * n))
    generator = torch.Generator().manual_seed(n)
    chosen = torch.stack(
        [torch.randperm(n, generator=generator)[:count].sort().values for _ in range(3)]
    ).to(device)
    chosen[0] = chosen[0].flip(0)
    fast = nearest.nearest_places(chosen, grid)
    monkeypatch.setattr(upsample, "usable", lambda *_: False)
    assert torch.equal(fast, upsample.nearest_source(KeepSet.of_rows(chosen), grid))


@devices
@pytest.mark.parametrize(
    ("grid", "old_grid"), [((6, 7), (4, 5)), ((4, 4), (4, 4)), ((9, 5), (3, 8))]
)
def test_taking_tokens_out_and_putting_them_back(
    device: str, grid: tuple[int, int], old_grid: tuple[int, int]
) -> None:
    n, n_old = grid[0] * grid[1], old_grid[0] * old_grid[1]
    before, old = draw(2, n, 40, device=device), draw(2, n_old, 40, device=device)
    even = draw(n, device=device)
    chosen = top.reference(draw(2, n, device=device), even, 11)
    fresh = spread.take(before, chosen.indices.flatten())
    rows = torch.arange(2, device=device)[:, None]
    assert torch.equal(fresh, before[rows, chosen.indices].flatten(0, 1))
    shuffled = chosen.indices[:, torch.randperm(11).to(device)]
    for indices in (shuffled, chosen.indices):
        places = spread.places_of(indices, n)
        assert torch.equal(places, spread.places_reference(indices, n))
    words = (before, fresh, places, old, grid, old_grid)
    fast, exact = (f(*words) for f in (spread.area_filled, spread.area_filled_reference))
    torch.testing.assert_close(fast, exact, rtol=1e-6, atol=1e-6)
    assert torch.equal(fast[rows, chosen.indices], exact[rows, chosen.indices])


@devices
@pytest.mark.parametrize("guidance", [None, 3.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.97), (1, 0.0), (900, 0.5), (0, 0.0), (2, 1.0)])
def test_draw_bits(
    device: str,
    guidance: float | None,
    top_k: int,
    top_p: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits = 3 * draw(24, 5, 2, device=device)
    logits[0] = 1.0
    draws = -torch.rand(2, 30, 2, generator=torch.Generator().manual_seed(0)).to(device).log()
    how = bits.Draw(0.7, guidance, top_k, top_p)
    drawn, guided = bits.draw_bits(logits, draws, how)
    monkeypatch.setattr(bits, "usable", lambda *_: False)
    exact, wanted = bits.draw_bits(logits, draws, how)
    assert torch.equal(drawn, exact)
    assert torch.equal(guided, wanted)


@pytest.mark.parametrize("x", [0.1, 0.03, 0.5, 1 - 0.97, 0.0, 1.0])
def test_a_bound_in_fp32_parts_fp32_numbers_as_the_exact_one_does(x: float) -> None:
    bound = torch.tensor(sample._rounded_down(x))
    assert bound.double() <= x
    assert torch.nextafter(bound, torch.tensor(2.0)).double() > x


@devices
@pytest.mark.parametrize("copies", [1, 2])
def test_with_level(device: str, copies: int) -> None:
    x, level = draw(2, 5, 130, device=device, dtype=DTYPE[device]), draw(130, device=device)
    assert torch.equal(embed.with_level(x, level, copies), embed.reference(x, level, copies))


def test_where_kernels_run_is_said_in_words() -> None:
    if os.environ.get("TRITON_INTERPRET") != "1":
        assert "triton" in str(support.why_not(torch.device("cpu"))) or "CUDA" in str(
            support.why_not(torch.device("cpu"))
        )


@pytest.fixture
def _forget_switches() -> Iterator[None]:
    support.switched_off.cache_clear()
    yield
    support.switched_off.cache_clear()


@pytest.mark.usefixtures("_forget_switches")
def test_one_kernel_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPVAR_KERNELS_OFF", "rotate, quantise")
    monkeypatch.setattr(support, "why_not", lambda device: None)
    x = torch.zeros(1)
    assert {name for name in support.SWITCHES if not support.usable(x, name)} == {
        "quantise",
        "rotate",
    }


@pytest.mark.usefixtures("_forget_switches")
def test_a_switch_that_names_no_kernel_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPVAR_KERNELS_OFF", "rotate,sampel")
    with pytest.raises(UserError, match=r"names sampel; allowed: .*\bsample\b"):
        support.switched_off()


def test_every_file_of_kernels_with_a_torch_form_has_a_switch() -> None:
    files = {path.stem for path in Path(support.__file__).parent.glob("*.py")}
    # The decoder's kernels are chosen by the engine.
    assert set(support.SWITCHES) == files - {"__init__", "support", "group_norm"}
