"""Preallocated key/value cache of one layer; rows may hold different numbers of tokens."""

from functools import lru_cache

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from infinity.ops.attention import KeyValues
from infinity.tokens import PackedTokens


class LayerCache:
    """Keys (normalised, rotated) and values of all tokens that later scales may see.

    Layout ``(rows, capacity, H, K)``: writing a scale is one slice copy, and the filled prefix is
    a dense view.
    """

    def __init__(
        self,
        rows: int,
        capacity: int,
        heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (rows, capacity, heads, head_dim)
        # Not empty: masked kernels still load entries past a row's length, and NaN · 0 = NaN.
        self.k = torch.zeros(shape, dtype=dtype, device=device)
        self.v = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths: tuple[int, ...] = (0,) * rows

    @property
    def nbytes(self) -> int:
        return self.k.nbytes + self.v.nbytes

    def keep_rows(self, start: int, stop: int) -> None:
        """Forgets all other rows and frees their memory."""
        if (start, stop) != (0, len(self.lengths)):
            self.k, self.v = self.k[start:stop].clone(), self.v[start:stop].clone()
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
        seqused = _on_device(lengths, k.device)
        return KeyValues(k_all, v_all, None, seqused, max(lengths), uniform)

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
        filled_rows = _on_device(self.lengths, k.device)
        inside = torch.arange(len(k), device=k.device) - tokens.cu_seqlens[:-1].long()[row_ids]
        slots = filled_rows[row_ids] + inside
        k_all[row_ids, slots] = k
        v_all[row_ids, slots] = v
        return k_all, v_all


@lru_cache(maxsize=256)
def _on_device(lengths: tuple[int, ...], device: torch.device) -> Int32[Tensor, " rows"]:
    """One copy to the device per set of lengths, not one per layer."""
    return torch.tensor(lengths, dtype=torch.int32, device=device)
