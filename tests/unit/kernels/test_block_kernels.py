"""The kernels of a transformer block against their torch functions."""

import pytest
import torch
from kernel_cases import DTYPE, LIMIT, ROWS, close, devices, draw

from infinity.ops.fused import embed, quantise, residual_norm, rotate
from infinity.ops.fused.residual_norm import Affine, Branch, RowsOf
from infinity.ops.fused.rotate import Phases, Slots

# Triton's interpreter cuts fp8 off instead of rounding it.
FP8_LIMIT = {"cpu": 8e-2, "cuda": 1e-2}


def rows_of(counts: tuple[int, ...], device: str) -> RowsOf:
    if len(set(counts)) == 1:
        return RowsOf(counts[0])
    ids = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(device)
    return RowsOf(max(counts), ids)


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
@pytest.mark.parametrize("many", [1, 10**6])
@pytest.mark.parametrize("counts", [(4, 4), (3, 5)])
def test_chosen_tokens_are_read_where_they_lie(
    device: str, counts: tuple[int, ...], many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residual_norm, "_MANY", many)
    x, mods = draw(2 * 9, 64, device=device) + 3, draw(2, 6, 64, device=device)
    generator = torch.Generator().manual_seed(1)
    picked = [torch.randperm(9, generator=generator)[:count] for count in counts]
    chosen = residual_norm.Chosen(torch.cat(picked).to(device), 9)
    rows, affine = rows_of(counts, device), Affine(mods[:, 2], mods[:, 4])
    fast = residual_norm.residual_norm(x, rows, affine, dtype=torch.float32, chosen=chosen)[1]
    taken = torch.cat([x[9 * row + at.to(device)] for row, at in enumerate(picked)])
    assert torch.equal(chosen.of(x, rows), taken)
    exact = residual_norm.residual_norm(taken, rows, affine, dtype=torch.float32)[1]
    assert torch.equal(fast, exact)


def test_chosen_tokens_take_no_branch() -> None:
    x = torch.zeros(4, 8)
    with pytest.raises(ValueError, match="cannot have a branch"):
        residual_norm.residual_norm(
            x, RowsOf(2), None, Branch(x), chosen=residual_norm.Chosen(torch.arange(2), 2)
        )


@devices
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("many", [1, 10**6])
@pytest.mark.parametrize("counts", [(4, 4), (3, 5)])
def test_what_a_branch_adds_is_heard(
    device: str,
    gated: bool,
    many: int,
    counts: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(residual_norm, "_MANY", many)
    x, mods = draw(8, 64, device=device), draw(2, 6, 64, device=device)
    y = draw(8, 64, device=device, dtype=DTYPE[device])
    heard, rows = torch.full_like(x, float("nan")), rows_of(counts, device)
    branch = Branch(y, mods[:, 0] if gated else None)
    stream = residual_norm.residual_norm(x.clone(), rows, None, branch, heard=heard)[0]
    assert torch.equal(heard, branch.gated(rows))
    assert torch.equal(stream, x + heard)


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
@pytest.mark.parametrize("copies", [1, 2])
def test_with_level(device: str, copies: int) -> None:
    x, level = draw(2, 5, 130, device=device, dtype=DTYPE[device]), draw(130, device=device)
    assert torch.equal(embed.with_level(x, level, copies), embed.reference(x, level, copies))
