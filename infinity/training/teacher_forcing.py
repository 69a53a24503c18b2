"""The transformer over all scales at once, each token seeing its own scale and the coarser ones.

Text is padded to a common length here, so that every step has the same shapes.

Shape legend: B images, L tokens of all trained scales, S scales, N text slots, C width, H heads, K
head dim, D bits per token.

Source: spec infinity-transformer §11 "Forward" and "Loss".
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from infinity.config import TransformerConfig
from infinity.schedule import ScaleSchedule
from infinity.transformer.block import Block, Modulation, Rope, linear
from infinity.transformer.model import InfinityTransformer
from infinity.transformer.rope import rope_table

MASKED_TOKENS = 128
"""Leading scales of at most so many tokens share one masked attention call; later ones have a call
each."""

ScaleWeights = Literal["uniform", "reweighted"]


@dataclass(frozen=True)
class SequencePlan:
    """Everything about a training sequence that no batch changes, on the training device.

    Attributes:
        cos, sin: ``(L, K/2)`` rotary phases.
        levels: ``(L,)`` scale of every token.
        mask: ``(n, n)`` block-causal mask of the ``n`` tokens of the leading small scales.
        spans: ``(start, end)`` of every later scale.
        scale_mean: ``(S, L)`` rows that average over the tokens of a scale.
        scale_weights: ``(S,)`` weights of the scales' mean losses, adding up to 1.
    """

    cos: Float[Tensor, "l pairs"]
    sin: Float[Tensor, "l pairs"]
    levels: Tensor
    mask: Bool[Tensor, "n n"]
    spans: tuple[tuple[int, int], ...]
    scale_mean: Float[Tensor, "s l"]
    scale_weights: Float[Tensor, " s"]


def sequence_plan(
    schedule: ScaleSchedule,
    scales: int,
    config: TransformerConfig,
    weights: ScaleWeights,
    device: torch.device,
) -> SequencePlan:
    """The plan of the first ``scales`` scales of a schedule.

    Args:
        schedule: token grids and rotary reference.
        scales: number of leading scales trained.
        config: of the transformer.
        weights: ``uniform`` weighs all tokens equally; ``reweighted`` gives a token of scale s
            weight ∝ sqrt(L_last / L_s), so that a scale counts ∝ the side of its grid.
        device: where the plan lives.
    """
    counts = schedule.tokens_per_scale[:scales]
    offsets = schedule.offsets[: scales + 1]
    small = max(k for k in range(1, scales + 1) if k == 1 or offsets[k] <= MASKED_TOKENS)
    levels = torch.arange(scales).repeat_interleave(torch.tensor(counts))
    cos, sin = rope_table(schedule, config.head_dim)[:, : offsets[scales]]
    member = (torch.arange(scales)[:, None] == levels).float()
    per_scale = torch.tensor(counts).float()
    shares = per_scale if weights == "uniform" else per_scale.sqrt()
    first = levels[: offsets[small]]
    return SequencePlan(
        cos=cos.to(device),
        sin=sin.to(device),
        levels=levels.to(device),
        mask=(first[:, None] >= first).to(device),
        spans=tuple((offsets[k], offsets[k + 1]) for k in range(small, scales)),
        scale_mean=(member / per_scale[:, None]).to(device),
        scale_weights=(shares / shares.sum()).to(device),
    )


def block_causal_attention(
    q: Float[Tensor, "b l heads dim"],
    k: Float[Tensor, "b l heads dim"],
    v: Float[Tensor, "b l heads dim"],
    mask: Bool[Tensor, "n n"],
    spans: tuple[tuple[int, int], ...],
) -> Float[Tensor, "b l heads dim"]:
    """Attention of every token to its own and all coarser scales, softmax scale 1.

    The leading ``n`` tokens run in one masked call; each later scale attends to its whole prefix,
    which needs no mask.
    """
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    n = mask.shape[0]
    first = F.scaled_dot_product_attention(
        q[:, :, :n], k[:, :, :n], v[:, :, :n], attn_mask=mask, scale=1.0
    )
    parts = [first.transpose(1, 2)]
    for start, end in spans:
        part = F.scaled_dot_product_attention(
            q[:, :, start:end], k[:, :, :end], v[:, :, :end], scale=1.0
        )
        parts.append(part.transpose(1, 2))
    return torch.cat(parts, dim=1)


def run_block(
    block: Block,
    x: Float[Tensor, "b l width"],
    shared: Float[Tensor, "b 6 width"],
    context: Float[Tensor, "b n width"],
    valid: Bool[Tensor, "b n"],
    cos: Float[Tensor, "l pairs"],
    sin: Float[Tensor, "l pairs"],
    mask: Bool[Tensor, "m m"],
    spans: tuple[tuple[int, int], ...],
) -> Float[Tensor, "b l width"]:
    """One block over the whole sequence. A plain function, so that all blocks share one compiled
    graph.
    """
    kv_text = block.ca.keys_values(context.flatten(0, 1)).unflatten(0, context.shape[:2])
    k_text, v_text = (t.transpose(1, 2) for t in kv_text.unbind(2))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return block_causal_attention(q, k, v, mask, spans)

    def attend_text(q: Tensor) -> Tensor:
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2), k_text, v_text, attn_mask=valid[:, None, None]
        )
        return out.transpose(1, 2)

    parameters = block.modulation(shared).unbind(1)
    modulation = Modulation(*(p[:, None] for p in parameters))
    rope = Rope(*(table.expand(x.shape[0], -1, -1) for table in (cos, sin)))
    return block(x, modulation, rope, attend, attend_text)


def embed(
    model: InfinityTransformer,
    inputs: Float[Tensor, "b l_in bits"],
    text: Float[Tensor, "b n text"],
    valid: Bool[Tensor, "b n"],
    levels: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Token stream, pooled text, shared modulation and projected text."""
    rows = model.text_norm(text.flatten(0, 1)).view(text.shape)
    pool = model.text_proj_for_sos
    sos = pool.pool(pool.keys_values(rows), valid).float()
    context = model.text_proj_for_ca(rows)
    tokens = linear(model.word_embed, inputs).float() + model.lvl_embed.weight[levels[1:]]
    x = torch.cat([model.embed_start(sos), tokens], dim=1)
    return x, sos, model.shared_modulation(sos), context


def bit_losses(
    model: InfinityTransformer,
    x: Float[Tensor, "b l width"],
    sos: Float[Tensor, "b width"],
    labels: Bool[Tensor, "b l bits"],
) -> tuple[Float[Tensor, " l"], Float[Tensor, " l"]]:
    """Cross-entropy and accuracy per token position, means over the bits and the batch.

    With two classes the cross-entropy is a softplus of the logit difference.
    """
    logits = model.logits(x, sos[:, None])
    margin = logits[..., 1] - logits[..., 0]
    signed = torch.where(labels, margin, -margin)
    return F.softplus(-signed).mean(dim=(0, 2)), (signed > 0).float().mean(dim=(0, 2))


@dataclass(frozen=True)
class TransformerStep:
    """Loss of a step, and per scale the mean loss and the share of right bits; no host sync."""

    loss: Float[Tensor, ""]
    scale_losses: Float[Tensor, " s"]
    scale_accuracies: Float[Tensor, " s"]


class TransformerObjective(nn.Module):
    """Teacher-forced loss of a transformer.

    Args:
        model: the transformer, its weights fp32.
        compiled: compile blocks, embedding and loss; each compiles once per phase.
    """

    def __init__(self, model: InfinityTransformer, compiled: bool) -> None:
        super().__init__()
        self.model = model
        wrap: Callable = (lambda f: torch.compile(f, dynamic=False)) if compiled else (lambda f: f)
        self._embed, self._run_block, self._bit_losses = (
            wrap(function) for function in (embed, run_block, bit_losses)
        )

    def stream(
        self,
        inputs: Float[Tensor, "b l_in bits"],
        text: Float[Tensor, "b n text"],
        valid: Bool[Tensor, "b n"],
        plan: SequencePlan,
    ) -> tuple[Float[Tensor, "b l width"], Float[Tensor, "b width"]]:
        """Output of the last block, and the pooled text that modulates the head."""
        x, sos, shared, context = self._embed(self.model, inputs, text, valid, plan.levels)
        for block in self.model.layers():
            x = self._run_block(
                block, x, shared, context, valid, plan.cos, plan.sin, plan.mask, plan.spans
            )
        return x, sos

    def forward(
        self,
        inputs: Float[Tensor, "b l_in bits"],
        labels: Bool[Tensor, "b l bits"],
        text: Float[Tensor, "b n text"],
        valid: Bool[Tensor, "b n"],
        dropped: Bool[Tensor, " b"],
        plan: SequencePlan,
    ) -> TransformerStep:
        """Weighted loss of a batch.

        Args:
            inputs: latents resampled to scales 2…S, as tokens.
            labels: bits of scales 1…S.
            text: features padded to N slots.
            valid: which slots hold a row.
            dropped: images whose text is replaced by as many rows of the unconditional table.
            plan: the sequence's layout.
        """
        unconditional = self.model.cfg_uncond[: text.shape[1]]
        text = torch.where(dropped[:, None, None], unconditional, text.float())
        x, sos = self.stream(inputs, text, valid, plan)
        token_losses, token_accuracies = self._bit_losses(self.model, x, sos, labels)
        # Elementwise, as autocast would run a matrix product in bf16.
        scale_losses = (plan.scale_mean * token_losses).sum(dim=1)
        return TransformerStep(
            (plan.scale_weights * scale_losses).sum(),
            scale_losses.detach(),
            (plan.scale_mean * token_accuracies).sum(dim=1),
        )
