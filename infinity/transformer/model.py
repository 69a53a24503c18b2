"""The bitwise autoregressive transformer: parameters, text conditioning, token embedding and head.

How the blocks are run over scales lives in ``stack.py`` (cached, prunable generation) and in
``infinity/training/`` (one teacher-forced pass). Attribute names are the checkpoints' wire format
(spec §3).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int32
from torch import Tensor, nn
from torch.nn import functional as F

from infinity.config import TransformerConfig
from infinity.ops.fused import usable
from infinity.ops.fused.embed import with_level
from infinity.ops.fused.residual_norm import Affine, RowsOf, residual_norm
from infinity.text.base import TextFeatures
from infinity.transformer.block import FFN, Block, CrossAttention, SelfAttention, linear
from infinity.transformer.text import TextNorm, TextPool

LEVEL_ROWS = 15
"""Rows of the level-embedding table in every checkpoint, whatever the schedule."""


@dataclass(frozen=True)
class TextConditioning:
    """What the blocks read of the prompts; rows are prompts of the conditional, then of the
    unconditional half.

    Attributes:
        sos: ``(b, C)`` pooled text, the condition of every adaLN, fp32.
        context: ``(n, C)`` projected text rows, packed.
        cu_seqlens: int32 ``(b + 1)``.
        max_seqlen: longest prompt.
        shared: ``(b, 6, C)`` shared adaLN projection, fp32.
        lengths: text rows per prompt, on the host.
    """

    sos: Float[Tensor, "b width"]
    context: Float[Tensor, "n width"]
    cu_seqlens: Int32[Tensor, " b1"]
    max_seqlen: int
    shared: Float[Tensor, "b 6 width"]
    lengths: tuple[int, ...]


class _Chunk(nn.Module):
    def __init__(self, blocks: list[Block]) -> None:
        super().__init__()
        self.module = nn.ModuleList(blocks)


class _HeadNorm(nn.Module):
    """Final adaLN: scale and shift from the pooled text, no further affine."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """``x (R, M, C)`` normalised and modulated by scale and shift ``(…, 2C)``, broadcastable
        to ``(R, M, 2C)``.
        """
        scale, shift = modulation.chunk(2, dim=-1)
        if usable(x, "residual_norm") and modulation.shape[1] == 1:
            affine, rows = Affine(scale[:, 0], shift[:, 0]), RowsOf(x.shape[1])
            flat = x.float().flatten(0, 1)
            normed = residual_norm(flat, rows, affine, eps=self.eps, dtype=torch.float32)[1]
            assert isinstance(normed, Tensor)
            return normed.view(x.shape)
        return F.layer_norm(x.float(), x.shape[-1:], eps=self.eps) * (1 + scale) + shift


class InfinityTransformer(nn.Module):
    """Infinity's transformer for one :class:`TransformerConfig`.

    Source: Infinity (arXiv 2412.04431); spec infinity-transformer §3–§5.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        width, text_width = config.width, config.text_width
        self.cfg_uncond = nn.Parameter(torch.zeros(config.text_max_tokens, text_width))
        self.text_norm = TextNorm(text_width, config.norm_eps)
        self.text_proj_for_sos = TextPool(config)
        self.text_proj_for_ca = nn.Sequential(
            nn.Linear(text_width, width), nn.GELU(approximate="tanh"), nn.Linear(width, width)
        )
        self.pos_start = nn.Parameter(torch.zeros(1, 1, width))
        self.lvl_embed = nn.Embedding(LEVEL_ROWS, width)
        self.word_embed = nn.Linear(config.token_bits, width)
        self.shared_ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.head_nm = _HeadNorm(width, config.norm_eps)
        self.head = nn.Linear(width, 2 * config.token_bits)
        blocks = [Block(config) for _ in range(config.depth)]
        if config.block_chunks > 1:
            size = config.depth // config.block_chunks
            self.block_chunks = nn.ModuleList(
                _Chunk(blocks[start : start + size]) for start in range(0, config.depth, size)
            )
        else:
            self.blocks = nn.ModuleList(blocks)

    def layers(self) -> Iterator[Block]:
        """All blocks in order, whichever way the checkpoint groups them."""
        if self.config.block_chunks > 1:
            for chunk in self.block_chunks:
                yield from chunk.module  # type: ignore[misc]
        else:
            yield from self.blocks  # type: ignore[misc]

    def set_compute_dtype(self, dtype: torch.dtype) -> "InfinityTransformer":
        """Stores the matrices of blocks, text projections and token embedding in ``dtype``; the
        rest stays fp32.

        Source: precision table of spec infinity-transformer §10; deviations: keys are cached in
        ``dtype`` (the reference caches fp32 and casts at every use: the same values), and the
        residual stream is fp32 throughout.
        """
        for module in self.modules():
            if isinstance(module, (SelfAttention, CrossAttention, FFN)):
                for child in module.children():
                    child.to(dtype)
        self.text_proj_for_sos.to(dtype)
        self.text_proj_for_ca.to(dtype)
        self.word_embed.to(dtype)
        return self

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def with_unconditional(
        self, text: TextFeatures, negatives: Sequence[Tensor | None] | None = None
    ) -> TextFeatures:
        """``text`` followed by the rows of the unconditional half (spec §4.3).

        Args:
            text: of the prompts.
            negatives: rows of each prompt's negative prompt; None takes the first rows of the
                learned table, as many as the prompt has itself.
        """
        chosen = [None] * len(text) if negatives is None else negatives
        rows = [
            (self.cfg_uncond[:n] if given is None else given).to(text.rows)
            for n, given in zip(text.lengths, chosen, strict=True)
        ]
        return TextFeatures.stack([*text.split(), *rows])

    def condition(self, text: TextFeatures) -> TextConditioning:
        """Everything derived from text, computed once per call (spec §4.4)."""
        rows, boundaries = text.rows.to(self.device), text.boundaries().to(self.device)
        return self.condition_rows(rows, boundaries, text.lengths, max(text.lengths))

    def condition_rows(
        self,
        rows: Float[Tensor, "room text_width"],
        cu_seqlens: Int32[Tensor, " b1"],
        lengths: tuple[int, ...],
        max_seqlen: int,
    ) -> TextConditioning:
        """As :meth:`condition`, of features on the device whose boundaries only it need know.

        Args:
            rows: features; those past the last boundary stand for nothing.
            cu_seqlens: row boundaries of the prompts.
            lengths: kept for the host; one per prompt.
            max_seqlen: no prompt is longer.
        """
        rows = self.text_norm(rows)
        sos = self.text_proj_for_sos(rows, cu_seqlens, max_seqlen)
        first, act, second = self.text_proj_for_ca
        context = second(act(linear(first, rows)))
        sos = sos.float()
        shared = self.shared_modulation(sos)
        return TextConditioning(sos, context, cu_seqlens, max_seqlen, shared, lengths)

    def shared_modulation(self, sos: Float[Tensor, "b width"]) -> Float[Tensor, "b 6 width"]:
        with torch.autocast(sos.device.type, enabled=False):
            return self.shared_ada_lin(sos.float()).unflatten(-1, (6, -1))

    def embed_start(self, sos: Float[Tensor, "b width"]) -> Float[Tensor, "b 1 width"]:
        """Input of scale 0: the pooled text."""
        return sos.float()[:, None] + self.pos_start + self.lvl_embed.weight[0]

    def embed_tokens(
        self, inputs: Float[Tensor, "b n bits"], si: int, copies: int = 1
    ) -> Float[Tensor, "rb n width"]:
        """Input of scale ``si`` ≥ 1 from resampled latents, with its level embedding, ``copies``
        times one after the other; fp32.
        """
        return with_level(linear(self.word_embed, inputs), self.lvl_embed.weight[si], copies)

    def logits(
        self, x: Float[Tensor, "r m width"], condition: Float[Tensor, "r m2 width"]
    ) -> Float[Tensor, "r m bits 2"]:
        """Bit logits in fp32; the last axis is (value 0, value 1)."""
        return self.modulated_logits(x, self.head_modulation(condition))

    def head_modulation(self, condition: Float[Tensor, "*r width"]) -> Float[Tensor, "*r width2"]:
        """Scale and shift of the head's norm, side by side."""
        with torch.autocast(condition.device.type, enabled=False):
            return self.head_nm.ada_lin(condition.float())

    def modulated_logits(
        self, x: Float[Tensor, "r m width"], modulation: Float[Tensor, "r m2 width2"]
    ) -> Float[Tensor, "r m bits 2"]:
        """:meth:`logits`, whose modulation is known."""
        with torch.autocast(x.device.type, enabled=False):
            return self.head(self.head_nm(x.float(), modulation)).unflatten(-1, (-1, 2))
