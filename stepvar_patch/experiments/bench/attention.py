"""Every attention backend on a model's real shapes: error against fp32, and time.

Shape legend: b rows, T packed queries, H heads, D head dim.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from infinity.errors import UserError
from infinity.loading import resolve_device, resolve_dtype
from infinity.ops.attention import AttentionRequest, KeyValues, select, support_table
from stepvar_patch.experiments.bench.attention_cases import AttentionCase, AttentionConfig, cases
from stepvar_patch.experiments.bench.environment import environment
from stepvar_patch.experiments.bench.files import make_folder_of, write_record
from stepvar_patch.experiments.bench.row import synchronize
from stepvar_patch.experiments.generate import Progress

FORMAT = "stepvar-bench-attention/1"
_QUERIES_AT_ONCE = 512
"""Of the reference, whose scores would fill the memory otherwise."""


@dataclass(kw_only=True)
class _Entry:
    """A backend on one case."""

    backend: str
    reason: str | None = None
    relative_error: float | None = None
    largest_error: float | None = None
    timed_in: str | None = None
    ms: list[float] = field(default_factory=list)
    work: Callable[[], None] | None = None


def run_attention(config: AttentionConfig, progress: Progress, command: str) -> dict[str, Any]:
    """Measures every case; the file is written after each.

    Args:
        config: of the benchmark.
        progress: told of every finished case.
        command: that the file names.

    Returns:
        What the file holds.

    Raises:
        UserError: a scale, device or output place that is not there.
    """
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    wanted = list(cases(config))
    if not wanted:
        raise UserError("kinds and pruning leave no call to time; allowed: kinds with dense, say")
    path = Path(config.output)
    make_folder_of(path)
    record: dict[str, Any] = {
        "format": FORMAT,
        "command": command,
        "config": asdict(config),
        "environment": environment(device),
        "cases": [],
    }
    progress.start(len(wanted), 0)
    for case in wanted:
        record["cases"].append(_measured(case, config, device, dtype))
        write_record(path, record)
        progress.advance(1)
    return record


@torch.inference_mode()
def _measured(
    case: AttentionCase, config: AttentionConfig, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    q_THD, kv = _inputs(case, device, dtype)
    cu_seqlens = _boundaries(case.queries, device)
    scale = case.head_dim**-0.5
    expected = reference(q_THD, kv, case, scale)
    request = AttentionRequest.on(device, dtype, case.head_dim, ragged=case.ragged, layout="padded")
    entries = [_Entry(backend=name, reason=why) for name, why in support_table(request)]
    for entry in entries:
        if entry.reason is None:
            _prepare(entry, request, q_THD, kv, cu_seqlens, case, scale, expected, config)
    for _ in range(config.rounds):
        for entry in entries:
            if entry.reason is None and entry.work is not None:
                entry.ms.append(_elapsed_ms(entry.work, device) / config.calls)
    return {
        **asdict(case),
        "flops": case.flops,
        "dtype": str(dtype).removeprefix("torch."),
        "backends": [_summary(entry, case) for entry in entries],
    }


def _prepare(
    entry: _Entry,
    request: AttentionRequest,
    q_THD: Tensor,
    kv: KeyValues,
    cu_seqlens: Tensor,
    case: AttentionCase,
    scale: float,
    expected: Tensor,
    config: AttentionConfig,
) -> None:
    """Compares a backend with the reference, warms it up and makes ready what is timed."""

    def call() -> Tensor:
        return select(entry.backend, request)(
            q_THD,
            kv,
            cu_seqlens_q=cu_seqlens,
            max_seqlen_q=max(case.queries),
            uniform_q=len(set(case.queries)) == 1,
            scale=scale,
        )

    def calls() -> None:
        for _ in range(config.calls):
            call()

    try:
        difference = call().float() - expected
        entry.relative_error = float(difference.norm() / expected.norm())
        entry.largest_error = float(difference.abs().max())
        for _ in range(config.warmup):
            call()
        entry.timed_in, entry.work = _captured(calls, q_THD.device)
    except Exception as error:  # a backend's own failure is its result
        first_line = str(error).strip().partition("\n")[0]
        entry.reason = str(error) if isinstance(error, UserError) else f"fails: {first_line}"


def _captured(calls: Callable[[], None], device: torch.device) -> tuple[str, Callable[[], None]]:
    """``calls`` as one CUDA graph; as they are on a CPU, or where they cannot be captured."""
    if device.type != "cuda":
        return "plain calls", calls
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            calls()
    except RuntimeError:
        torch.cuda.synchronize(device)
        return "plain calls", calls
    return "CUDA graph", graph.replay


def _elapsed_ms(work: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        first, second = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        work()
        second.record()
        second.synchronize()
        return float(first.elapsed_time(second))
    synchronize(device)
    start = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - start)


def _summary(entry: _Entry, case: AttentionCase) -> dict[str, Any]:
    middle = median(entry.ms) if entry.ms else None
    return {
        "backend": entry.backend,
        "reason": entry.reason,
        "relative_error": _short(entry.relative_error),
        "largest_error": _short(entry.largest_error),
        "timed_in": entry.timed_in,
        "n": len(entry.ms),
        "median_ms": _short(middle),
        "min_ms": _short(min(entry.ms, default=None)),
        "max_ms": _short(max(entry.ms, default=None)),
        "tflops_per_s": _short(None if middle is None else case.flops / middle / 1e9),
    }


def _short(value: float | None) -> float | None:
    """Five digits."""
    return None if value is None else float(f"{value:.5g}")


def _inputs(
    case: AttentionCase, device: torch.device, dtype: torch.dtype
) -> tuple[Float[Tensor, "T H D"], KeyValues]:
    """Random queries, packed, and a filled cache whose unused ends must not matter."""
    generator = torch.Generator(device).manual_seed(case.scale)
    inner = (case.heads, case.head_dim)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    q_THD = normal(sum(case.queries), *inner)
    k, v = (normal(len(case.keys), max(case.keys), *inner) for _ in range(2))
    seqused = torch.tensor(case.keys, dtype=torch.int32, device=device)
    uniform = len(set(case.keys)) == 1
    return q_THD, KeyValues(k, v, None, seqused, max(case.keys), uniform)


def _boundaries(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    edges = torch.tensor((0, *lengths)).cumsum(0)
    return edges.to(device=device, dtype=torch.int32)


def reference(
    q_THD: Float[Tensor, "T H D"], kv: KeyValues, case: AttentionCase, scale: float
) -> Float[Tensor, "T H D"]:
    """Softmax attention as it is defined, in fp32, row by row."""
    outputs = []
    for row, q_MHD in enumerate(q_THD.float().split(list(case.queries))):
        k, v = (side[row, : case.keys[row]].float().transpose(0, 1) for side in (kv.k, kv.v))
        for part in q_MHD.transpose(0, 1).split(_QUERIES_AT_ONCE, dim=1):
            weights = (part @ k.transpose(1, 2) * scale).softmax(-1)
            outputs.append((weights @ v).transpose(0, 1))
    return torch.cat(outputs)
