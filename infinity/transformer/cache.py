"""Preallocated key/value cache of one layer; rows may hold different numbers of tokens."""

from functools import lru_cache

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from infinity.ops.attention import KeyValues
from infinity.ops.fused.rotate import Slots
from infinity.tokens import PackedTokens


class LayerCache:
    """Keys (normalised, rotated) and values of all tokens that later scales may see.

    Layout ``(rows, capacity, H, K)``: writing a scale is one slice copy, and the filled prefix is
    a dense view.

    Args:
        k, v: the memory, all of it finite: masked kernels still load entries past a row's length,
            and NaN · 0 = NaN.
        capacity: entries of a row that keep their content for later scales; entries of ``k`` and
            ``v`` beyond serve the last scale only.
        known: lengths that this call has on the device already; caches of a call share it.
    """

    def __init__(
        self,
        k: Float[Tensor, "rows span heads dim"],
        v: Float[Tensor, "rows span heads dim"],
        capacity: int,
        known: dict[tuple[int, ...], Tensor] | None = None,
    ) -> None:
        self.k, self.v, self.capacity = k, v, capacity
        self._known = {} if known is None else known
        self.lengths: tuple[int, ...] = (0,) * k.shape[0]

    @staticmethod
    def new(
        rows: int,
        capacity: int,
        heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> "LayerCache":
        """An empty cache in memory of its own."""
        memory = torch.zeros(2, rows, capacity, heads, head_dim, dtype=dtype, device=device)
        return LayerCache(memory[0], memory[1], capacity)

    @property
    def nbytes(self) -> int:
        return self.k.nbytes + self.v.nbytes

    def keep_rows(self, start: int, stop: int) -> None:
        """Forgets all other rows."""
        if (start, stop) != (0, len(self.lengths)):
            self.k, self.v = self.k[start:stop], self.v[start:stop]
            self.lengths = self.lengths[start:stop]

    def extend(
        self,
        k: Float[Tensor, "total heads dim"],
        v: Float[Tensor, "total heads dim"],
        tokens: PackedTokens,
        write: bool,
    ) -> KeyValues:
        """What the current scale's queries see: everything cached so far plus ``k``, ``v``.

        Args:
            k, v: this scale's keys and values, packed like ``tokens``.
            tokens: the layout of ``k`` and ``v``; only its row structure is read.
            write: whether later scales will read them; if not, the cache itself is left as it is.
        """
        lengths = tuple(a + b for a, b in zip(self.lengths, tokens.counts, strict=True))
        uniform = len(set(self.lengths)) == 1 and tokens.uniform
        if uniform:
            k_all, v_all = self._extend_uniform(k, v, tokens, write)
        else:
            k_all, v_all = self._extend_ragged(k, v, tokens, write, max(lengths))
        if write:
            self.lengths = lengths
        seqused = self._on_device(lengths)
        return KeyValues(k_all, v_all, None, seqused, max(lengths), uniform)

    def reserve(self, tokens: PackedTokens, write: bool, last: bool) -> tuple[Slots, KeyValues]:
        """Where a kernel is to put the current scale's keys and values, and what its queries see
        once they are there.

        Args:
            tokens: their layout.
            write: whether later scales will read them.
            last: no later scale reads anything, so entries beyond the capacity may be used.
        """
        lengths = tuple(a + b for a, b in zip(self.lengths, tokens.counts, strict=True))
        uniform = len(set(self.lengths)) == 1 and tokens.uniform
        k, v, filled = self.k, self.v, max(self.lengths)
        if max(lengths) > (k.shape[1] if last else self.capacity):
            room = (k.shape[0], max(tokens.counts), *k.shape[2:])
            k, v = (torch.cat([t[:, :filled], t.new_zeros(room)], dim=1) for t in (k, v))
        ids = None
        if not uniform:
            rows = tokens.row_ids()
            inside = torch.arange(len(rows), device=k.device) - tokens.cu_seqlens[rows]
            ids = self._on_device(self.lengths)[rows] + inside
        if write:
            self.lengths = lengths
        seqused = self._on_device(lengths)
        slots = Slots(k, v, filled, ids)
        return slots, KeyValues(k, v, None, seqused, max(lengths), uniform)

    def _on_device(self, lengths: tuple[int, ...]) -> Int32[Tensor, " rows"]:
        if lengths not in self._known:
            self._known[lengths] = _on_device(lengths, self.k.device)
        return self._known[lengths]

    def _extend_uniform(
        self, k: Tensor, v: Tensor, tokens: PackedTokens, write: bool
    ) -> tuple[Tensor, Tensor]:
        filled, count = self.lengths[0], tokens.max_seqlen
        k, v = (t.unflatten(0, (tokens.rows, count)) for t in (k, v))
        if not write:
            if not filled:
                return k, v
            return (
                torch.cat([self.k[:, :filled], k], dim=1),
                torch.cat([self.v[:, :filled], v], dim=1),
            )
        self.k[:, filled : filled + count] = k
        self.v[:, filled : filled + count] = v
        return self.k, self.v

    def _extend_ragged(
        self, k: Tensor, v: Tensor, tokens: PackedTokens, write: bool, capacity: int
    ) -> tuple[Tensor, Tensor]:
        k_all, v_all = self.k, self.v
        if not write:
            filled = max(self.lengths)
            shape = (tokens.rows, capacity, *self.k.shape[2:])
            k_all, v_all = k.new_zeros(shape), v.new_zeros(shape)
            k_all[:, :filled], v_all[:, :filled] = self.k[:, :filled], self.v[:, :filled]
        row_ids = tokens.row_ids()
        filled_rows = self._on_device(self.lengths)
        inside = torch.arange(len(k), device=k.device) - tokens.cu_seqlens[:-1].long()[row_ids]
        slots = filled_rows[row_ids] + inside
        k_all[row_ids, slots] = k
        v_all[row_ids, slots] = v
        return k_all, v_all


def stacked_caches(
    layers: int, rows: int, capacity: int, tail: int, memory: Float[Tensor, "2 n heads dim"]
) -> list[LayerCache]:
    """Caches of consecutive layers in one piece of memory, each with ``tail`` entries to spare.

    A row's layers lie end to end, the first one last, and every tail reaches into the layer before:
    at the last scale that layer's keys and values have been read already, so the tails cost the
    memory of one.

    Args:
        memory: keys and values, at least ``rows · (layers · capacity + tail)`` entries each.
    """
    span = layers * capacity + tail
    k, v = memory[:, : rows * span].unflatten(1, (rows, span))
    starts = [capacity * (layers - 1 - layer) for layer in range(layers)]
    known: dict[tuple[int, ...], Tensor] = {}
    return [
        LayerCache(k[:, start:stop], v[:, start:stop], capacity, known)
        for start, stop in ((start, start + capacity + tail) for start in starts)
    ]


def forked_caches(caches: list[LayerCache]) -> list[LayerCache]:
    """Other caches of one call, filled as far as ``caches`` are, in the same memory."""
    known: dict[tuple[int, ...], Tensor] = {}
    for cache in caches:
        known.update(cache._known)
    forked = []
    for cache in caches:
        forked.append(LayerCache(cache.k, cache.v, cache.capacity, known))
        forked[-1].lengths = cache.lengths
    return forked


def _on_device(lengths: tuple[int, ...], device: torch.device) -> Int32[Tensor, " rows"]:
    """``lengths`` as a tensor; equal ones need no copy from the host."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        if len(set(lengths)) > 1:
            raise RuntimeError("rows of unequal length cannot be recorded")
        return torch.full((len(lengths),), lengths[0], dtype=torch.int32, device=device)
    return _copied(lengths, device)


@lru_cache(maxsize=256)
def _copied(lengths: tuple[int, ...], device: torch.device) -> Int32[Tensor, " rows"]:
    """One copy to the device per set of lengths, not one per layer."""
    return torch.tensor(lengths, dtype=torch.int32, device=device)
