"""What an attention call is made of, and the layout helpers that backends share.

Shape legend: b rows, T packed queries, N packed keys, L longest row, H heads, D head dim.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Int32
from torch import Tensor

Layout = Literal["padded", "packed"]

FEW_QUERIES, FEW_KEYS = 512, 1024
"""Up to here a call's set-up weighs more than its kernel's speed (H200, two rows of 16 heads: 512
queries on 521 keys take 10 µs instead of 14, 800 on 921 as long as with set-up)."""


@dataclass(frozen=True)
class KeyValues:
    """Keys and values of all rows, in one of two layouts.

    Attributes:
        k: padded ``(b, capacity, H, D)``, row ``i`` valid in ``[0, seqused[i])``; or packed
            ``(N, H, D)``, row ``i`` at ``[cu_seqlens[i], cu_seqlens[i + 1])``. Entries outside
            these ranges are never attended to but must be finite (kernels weigh them with 0).
        v: as ``k``.
        cu_seqlens: packed layout only: int32 row boundaries on the device, starting at 0.
        seqused: padded layout only: int32 valid length of each row on the device.
        max_seqlen: longest row, on the host. Every row holds at least one entry.
        uniform: every row holds exactly ``max_seqlen`` entries.
    """

    k: Tensor
    v: Tensor
    cu_seqlens: Int32[Tensor, " b1"] | None
    seqused: Int32[Tensor, " b"] | None
    max_seqlen: int
    uniform: bool

    def __post_init__(self) -> None:
        padded = self.k.ndim == 4
        if padded == (self.seqused is None) or padded == (self.cu_seqlens is not None):
            raise ValueError("padded keys (4-D) need seqused, packed keys (3-D) cu_seqlens")

    @property
    def layout(self) -> Layout:
        return "padded" if self.k.ndim == 4 else "packed"


@lru_cache
def _capability(device: torch.device) -> tuple[int, int] | None:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


@dataclass(frozen=True)
class AttentionRequest:
    """The static properties of a call that decide which backends can serve it.

    Attributes:
        device_type: ``"cpu"`` or ``"cuda"``.
        dtype: dtype of queries, keys and values.
        head_dim: channels of one head.
        ragged: queries or keys differ in number between rows.
        layout: layout of the keys.
        capability: CUDA compute capability; ``None`` off CUDA.
        few: all rows together have at most :data:`FEW_QUERIES` queries, and none of them more than
            :data:`FEW_KEYS` keys.
    """

    device_type: str
    dtype: torch.dtype
    head_dim: int
    ragged: bool
    layout: Layout
    capability: tuple[int, int] | None = None
    few: bool = False

    @staticmethod
    def on(
        device: torch.device,
        dtype: torch.dtype,
        head_dim: int,
        *,
        ragged: bool,
        layout: Layout,
        queries: int | None = None,
        keys: int = 0,
    ) -> "AttentionRequest":
        """A request for ``device``, its compute capability filled in.

        Args:
            queries: of all rows together; None: many.
            keys: of the longest row.
        """
        few = queries is not None and queries <= FEW_QUERIES and keys <= FEW_KEYS
        capability = _capability(device)
        return AttentionRequest(device.type, dtype, head_dim, ragged, layout, capability, few)


@runtime_checkable
class AttentionBackend(Protocol):
    """Softmax attention of packed queries: each sees all keys of its own row and no others."""

    name: str

    def supports(self, request: AttentionRequest) -> str | None:
        """``None`` if such calls can be served, else the reason why not."""
        ...

    def __call__(
        self,
        q_THD: Float[Tensor, "T H D"],
        kv: KeyValues,
        *,
        cu_seqlens_q: Int32[Tensor, " b1"],
        max_seqlen_q: int,
        uniform_q: bool,
        scale: float,
    ) -> Float[Tensor, "T H D"]:
        """Attention output of every query.

        Args:
            q_THD: queries of all rows laid end to end.
            kv: keys and values, same dtype and device.
            cu_seqlens_q: row boundaries of the queries; a row may have none.
            max_seqlen_q: most queries of a row, on the host.
            uniform_q: every row has exactly ``max_seqlen_q`` queries.
            scale: factor on the scores before the softmax.
        """
        ...


def half_precision_on_cuda(request: AttentionRequest) -> str | None:
    """The reason why a half-precision CUDA kernel cannot serve ``request``, if there is one."""
    if request.device_type != "cuda":
        return f"runs on cuda only, not on {request.device_type}"
    if request.dtype not in (torch.float16, torch.bfloat16):
        return f"takes float16 or bfloat16, not {str(request.dtype).removeprefix('torch.')}"
    return None


def flash_attention_2(request: AttentionRequest) -> str | None:
    """The reason why a FlashAttention-2 kernel cannot serve ``request``, if there is one."""
    if reason := half_precision_on_cuda(request):
        return reason
    if request.capability is None or request.capability < (8, 0):
        return f"needs compute capability 8.0, not {request.capability}"
    if request.head_dim % 8 or request.head_dim > 256:
        return f"takes head dims that are multiples of 8 up to 256, not {request.head_dim}"
    return None


def row_index(
    cu_seqlens: Int32[Tensor, " b1"], total: int
) -> tuple[Int[Tensor, " total"], Int[Tensor, " total"]]:
    """Row of each of ``total`` packed entries (past the end: the last row), and place in it."""
    entry = torch.arange(total, device=cu_seqlens.device, dtype=torch.int32)
    row = torch.searchsorted(cu_seqlens[1:], entry, right=True).clamp_max(len(cu_seqlens) - 2)
    return row, entry - cu_seqlens[row]


def pad(
    x_NHD: Float[Tensor, "N H D"], cu_seqlens: Int32[Tensor, " b1"], max_seqlen: int
) -> tuple[Float[Tensor, "b L H D"], Bool[Tensor, "b L"]]:
    """Rows of a packed tensor side by side, and which entries are theirs; the others are filler."""
    place = torch.arange(max_seqlen, device=x_NHD.device, dtype=torch.int32)
    lengths = cu_seqlens.diff()
    index = (cu_seqlens[:-1, None] + place).clamp_max(len(x_NHD) - 1)
    return x_NHD[index], place < lengths[:, None]


def packed_keys(kv: KeyValues) -> tuple[Tensor, Tensor, Int32[Tensor, " b1"]]:
    """Keys, values and row boundaries in packed layout, without a host sync.

    Free for packed keys and for uniform rows that fill their cache; otherwise the valid entries
    are copied to the front of tensors of ``b · max_seqlen`` entries.
    """
    if kv.cu_seqlens is not None:
        return kv.k, kv.v, kv.cu_seqlens
    assert kv.seqused is not None
    rows, device = len(kv.k), kv.k.device
    if kv.uniform:
        k, v = kv.k[:, : kv.max_seqlen], kv.v[:, : kv.max_seqlen]
        boundaries = torch.arange(rows + 1, device=device, dtype=torch.int32) * kv.max_seqlen
        return k.flatten(0, 1), v.flatten(0, 1), boundaries
    boundaries = torch.nn.functional.pad(kv.seqused.cumsum(0, dtype=torch.int32), (1, 0))
    row, place = row_index(boundaries, rows * kv.max_seqlen)
    place = place.clamp_max(kv.k.shape[1] - 1)
    return kv.k[row, place], kv.v[row, place], boundaries
