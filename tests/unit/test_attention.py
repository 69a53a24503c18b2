"""One suite over all attention backends: naive per-row float64 attention is the truth."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from infinity.errors import UserError
from infinity.ops.attention import (
    AttentionBackend,
    AttentionRequest,
    KeyValues,
    names,
    register,
    registry,
    select,
    support_table,
)
from infinity.ops.attention.base import FEW_KEYS, FEW_QUERIES
from infinity.ops.attention.sdpa import SdpaAttention
from infinity.ops.attention.triton import TritonAttention
from infinity.tokens import pack_all
from infinity.transformer import layer

CPU = pytest.param("cpu", id="cpu")
GPU = pytest.param("cuda", id="cuda", marks=pytest.mark.gpu)
SHAPES = {
    "uniform": ([5, 5, 5], [9, 9, 9]),
    "uniform_one_row": ([300], [700]),
    "uniform_one_token": ([1, 1], [1, 1]),
    "uniform_queries": ([4, 4], [3, 11]),
    "uniform_keys": ([4, 1], [6, 6]),
    "ragged": ([7, 1, 130, 64], [12, 257, 131, 1]),
    "row_without_queries": ([3, 0, 2], [4, 2, 6]),
}


def boundaries(lengths: Sequence[int], device: str) -> Tensor:
    return torch.tensor([0, *lengths], device=device).cumsum(0).int()


@dataclass(frozen=True)
class Problem:
    """Per-row queries, keys and values; garbage fills the unused part of a padded cache."""

    q: list[Tensor]
    k: list[Tensor]
    v: list[Tensor]

    @staticmethod
    def random(
        q_lens: Sequence[int],
        k_lens: Sequence[int],
        head_dim: int = 16,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> "Problem":
        generator = torch.Generator().manual_seed(sum(q_lens) * 1000 + sum(k_lens))

        def draw(lengths: Sequence[int]) -> list[Tensor]:
            rows = [torch.randn(n, 3, head_dim, generator=generator) for n in lengths]
            return [row.to(device, dtype) for row in rows]

        return Problem(draw(q_lens), draw(k_lens), draw(k_lens))

    def permuted(self, order: Sequence[int]) -> "Problem":
        return Problem(*([rows[i] for i in order] for rows in (self.q, self.k, self.v)))

    def key_values(self, layout: str, spare: int = 3) -> KeyValues:
        lengths = [len(rows) for rows in self.k]
        device = str(self.k[0].device)
        longest, uniform = max(lengths), len(set(lengths)) == 1
        if layout == "packed":
            k, v = torch.cat(self.k), torch.cat(self.v)
            return KeyValues(k, v, boundaries(lengths, device), None, longest, uniform)
        k, v = (
            torch.full((len(lengths), longest + spare, *rows[0].shape[1:]), 50.0)
            .to(rows[0])
            .contiguous()
            for rows in (self.k, self.v)
        )
        for i, n in enumerate(lengths):
            k[i, :n], v[i, :n] = self.k[i], self.v[i]
        seqused = torch.tensor(lengths, dtype=torch.int32, device=device)
        return KeyValues(k, v, None, seqused, longest, uniform)

    def request(self, layout: str) -> AttentionRequest:
        q = self.q[0]
        lengths = {len(r) for r in self.q}, {len(r) for r in self.k}
        ragged = any(len(n) > 1 for n in lengths)
        return AttentionRequest.on(q.device, q.dtype, q.shape[-1], ragged=ragged, layout=layout)

    def run(self, backend: str, layout: str, scale: float) -> list[Tensor]:
        lengths = [len(rows) for rows in self.q]
        out = select(backend, self.request(layout))(
            torch.cat(self.q),
            self.key_values(layout),
            cu_seqlens_q=boundaries(lengths, str(self.q[0].device)),
            max_seqlen_q=max(lengths),
            uniform_q=len(set(lengths)) == 1,
            scale=scale,
        )
        return list(out.split(lengths))

    def expected(self, scale: float) -> list[Tensor]:
        out = []
        for q, k, v in zip(self.q, self.k, self.v, strict=True):
            scores = torch.einsum("qhd,khd->hqk", q.double(), k.double()) * scale
            out.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v.double()))
        return out


def skip_unsupported(backend: str, request: AttentionRequest) -> None:
    reason = dict(support_table(request))[backend]
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("head_dim", [64, 96, 128])
@pytest.mark.parametrize("device", [CPU, GPU])
@pytest.mark.parametrize("backend", names())
def test_matches_naive_attention(
    backend: str, device: str, head_dim: int, shape: str, layout: str
) -> None:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    problem = Problem.random(*SHAPES[shape], head_dim=head_dim, dtype=dtype, device=device)
    skip_unsupported(backend, problem.request(layout))
    scale = 0.7 / head_dim**0.5
    out = torch.cat(problem.run(backend, layout, scale))
    expected = torch.cat(problem.expected(scale))
    assert out.shape == expected.shape
    assert out.dtype == dtype
    error = out.double() - expected
    relative = float(error.norm() / expected.norm())
    assert relative < (5e-3 if device == "cuda" else 1e-6)
    allowed = (2e-2 if device == "cuda" else 5e-6) * (1 + expected.abs())
    assert bool((error.abs() <= allowed).all())


lengths = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 9)), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None)
@given(rows=lengths, layout=st.sampled_from(["padded", "packed"]), data=st.data())
def test_permuting_rows_permutes_outputs(
    rows: list[tuple[int, int]], layout: str, data: st.DataObject
) -> None:
    rows = [(max(1, rows[0][0]), rows[0][1]), *rows[1:]]
    problem = Problem.random([q for q, _ in rows], [k for _, k in rows])
    order = data.draw(st.permutations(range(len(rows))))
    straight = problem.run("sdpa", layout, 1.0)
    shuffled = problem.permuted(order).run("sdpa", layout, 1.0)
    for place, row in enumerate(order):
        torch.testing.assert_close(shuffled[place], straight[row], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("device", [CPU, GPU])
@pytest.mark.parametrize("backend", names())
def test_rows_do_not_see_each_other(backend: str, device: str, layout: str) -> None:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    problem = Problem.random([3, 70, 2], [9, 80, 7], head_dim=64, dtype=dtype, device=device)
    skip_unsupported(backend, problem.request(layout))
    other = Problem(*([r[0], r[1] * -3, r[2] + 5] for r in (problem.q, problem.k, problem.v)))
    assert torch.equal(problem.run(backend, layout, 0.1)[0], other.run(backend, layout, 0.1)[0])


def test_uniform_rows_are_used_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem.random([2, 2], [4, 4])
    kv = problem.key_values("padded")
    seen: list[Tensor] = []
    real = torch.nn.functional.scaled_dot_product_attention

    def spy(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        assert mask is None
        seen.extend((k, v))
        return real(q, k, v, mask, scale=scale)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    select("sdpa", problem.request("padded"))(
        torch.cat(problem.q),
        kv,
        cu_seqlens_q=boundaries([2, 2], "cpu"),
        max_seqlen_q=2,
        uniform_q=True,
        scale=1.0,
    )
    assert [t.data_ptr() for t in seen] == [kv.k.data_ptr(), kv.v.data_ptr()]


REQUEST = AttentionRequest("cpu", torch.float32, 64, True, "padded")


def test_an_unknown_name_lists_the_valid_ones() -> None:
    with pytest.raises(UserError, match=r"attention=fast: unknown .*auto, sdpa, triton, flash"):
        select("fast", REQUEST)


def test_an_explicit_name_never_falls_back() -> None:
    with pytest.raises(UserError, match="attention=torch_varlen: runs on cuda only, not on cpu"):
        select("torch_varlen", REQUEST)


def test_auto_takes_the_first_supported_and_says_once_what_it_passed_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Picky:
        name = "picky"

        def supports(self, request: AttentionRequest) -> str | None:
            return "dislikes everything"

        def __call__(self, *_: object, **__: object) -> torch.Tensor:
            raise AssertionError("must not be chosen")

    def missing() -> Picky:
        raise ImportError("No module named 'nowhere'")

    monkeypatch.setattr(registry, "_loaders", dict(registry._loaders))
    monkeypatch.setattr(registry, "DENSE_ORDER", ("picky", "missing", "sdpa"))
    register("picky", Picky)
    register("missing", missing)
    with caplog.at_level(logging.INFO, logger="infinity"):
        assert select("auto", REQUEST).name == "sdpa"
        assert select("auto", REQUEST).name == "sdpa"
    monkeypatch.undo()
    register("sdpa", registry._loaders["sdpa"])
    (message,) = [record.getMessage() for record in caplog.records]
    assert "picky (dislikes everything)" in message
    assert "missing (cannot be imported (ImportError: No module named 'nowhere'))" in message


HOPPER = (9, 0)


@pytest.mark.parametrize(
    ("queries", "keys", "ragged", "device", "capability", "expected"),
    [
        (FEW_QUERIES, FEW_KEYS, False, "cuda", HOPPER, "triton"),
        (FEW_QUERIES + 1, 1, False, "cuda", HOPPER, "sdpa"),
        (1, FEW_KEYS + 1, False, "cuda", HOPPER, "sdpa"),
        (None, 1, False, "cuda", HOPPER, "sdpa"),
        (1, 1, True, "cuda", HOPPER, "torch_varlen"),
        (1, 1, False, "cuda", (8, 0), "sdpa"),
        (1, 1, False, "cuda", (12, 0), "sdpa"),
        (1, 1, False, "cpu", None, "sdpa"),
    ],
)
def test_few_queries_of_equal_rows_go_to_our_own_kernel(
    queries: int | None,
    keys: int,
    ragged: bool,
    device: str,
    capability: tuple[int, int] | None,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request = AttentionRequest.on(
        torch.device("cpu"),
        torch.bfloat16,
        128,
        ragged=ragged,
        layout="padded",
        queries=queries,
        keys=keys,
    )
    served = ("triton", "torch_varlen", "sdpa")
    monkeypatch.setattr(registry, "_reason", lambda name, _: None if name in served else "absent")
    there = replace(request, device_type=device, capability=capability)
    assert select.__wrapped__("auto", there).name == expected


def test_a_layer_says_how_much_there_is_to_attend_to(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[AttentionRequest] = []

    def heard(name: str, request: AttentionRequest) -> AttentionBackend:
        asked.append(request)
        return select("sdpa", request)

    monkeypatch.setattr(layer, "select", heard)
    for queries, keys in ((5, 9), (FEW_QUERIES + 1, 1), (1, FEW_KEYS + 1)):
        problem = Problem.random([queries], [keys])
        layer._attention(
            torch.cat(problem.q),
            pack_all(problem.q[0][None, :, 0]),
            problem.key_values("padded"),
            1.0,
            "auto",
        )
    assert [request.few for request in asked] == [True, False, False]


def test_our_own_kernel_takes_values_that_lie_otherwise_than_keys() -> None:
    qkv = torch.randn(6, 3, 2, 16)
    k, v = qkv[:, 1].contiguous()[None], qkv[:, 2][None]
    kv = KeyValues(k, v, None, torch.tensor([6], dtype=torch.int32), 6, True)
    words = {
        "cu_seqlens_q": boundaries([6], "cpu"),
        "max_seqlen_q": 6,
        "uniform_q": True,
        "scale": 1.0,
    }
    fast, exact = (
        backend(qkv[:, 0], kv, **words) for backend in (TritonAttention(), SdpaAttention())
    )
    torch.testing.assert_close(fast, exact)


def test_every_reason_reads_as_one_line() -> None:
    cuda = AttentionRequest("cuda", torch.float32, 64, True, "padded", (9, 0))
    old = AttentionRequest("cuda", torch.float16, 64, True, "padded", (7, 5))
    for request in (REQUEST, cuda, old):
        table = dict(support_table(request))
        assert table.pop("sdpa") is None
        assert all(reason and "\n" not in reason for reason in table.values())


def test_key_values_must_say_where_rows_end() -> None:
    k = torch.zeros(2, 4, 1, 8)
    with pytest.raises(ValueError, match="seqused"):
        KeyValues(k, k, None, None, 4, True)
