"""The teacher-forced pass and its objective against recorded tensors
(tests/golden/infinity/README.md).
"""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from infinity.config import TransformerConfig
from infinity.schedule import ScaleSchedule, scale_schedule
from infinity.tokenizer.quantizer import self_correction
from infinity.training.teacher_forcing import (
    TransformerObjective,
    TransformerStep,
    block_causal_attention,
    sequence_plan,
)
from infinity.transformer.model import InfinityTransformer

FOLDER = Path(__file__).parent / "infinity"


@cache
def recorded(case: str) -> dict[str, Tensor]:
    return load_file(FOLDER / f"{case}_teacher_forced.safetensors")


@cache
def settings(case: str) -> dict:
    with safe_open(FOLDER / f"{case}_state.safetensors", framework="pt") as handle:
        return json.loads(handle.metadata()["config"])


@cache
def model(case: str) -> InfinityTransformer:
    config = settings(case)
    transformer = InfinityTransformer(
        TransformerConfig(
            depth=config["depth"],
            width=config["embed_dim"],
            heads=config["num_heads"],
            block_chunks=config["block_chunks"],
            codebook_dim=config["d"],
            patchify=bool(config["apply_spatial_patchify"]),
            text_width=config["text_channels"],
            text_max_tokens=config["text_maxlen"],
        )
    )
    transformer.load_state_dict(load_file(FOLDER / f"{case}_state.safetensors"))
    return transformer.eval()


def schedule(case: str) -> ScaleSchedule:
    return scale_schedule({"a": 1.0, "b": 1.5}[case], "0.06M")


def padded_text(case: str) -> tuple[Tensor, Tensor]:
    io = recorded(case)
    parts = io["text_kv"].split(io["text_lens"].tolist())
    text = torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True, padding_value=7.0)
    return text, torch.arange(text.shape[1]) < io["text_lens"][:, None]


def step(case: str, weights: str) -> TransformerStep:
    io, text = recorded(case), padded_text(case)
    plan = sequence_plan(schedule(case), 7, model(case).config, weights, torch.device("cpu"))
    kept = torch.zeros(2, dtype=torch.bool)
    labels = io["gt_bits"].bool()
    with torch.no_grad():
        return TransformerObjective(model(case), compiled=False)(
            io["x_BLC_wo_prefix"], labels, *text, kept, plan
        )


@pytest.mark.parametrize("case", ["a", "b"])
def test_logits(case: str) -> None:
    io = recorded(case)
    plan = sequence_plan(schedule(case), 7, model(case).config, "uniform", torch.device("cpu"))
    with torch.no_grad():
        objective = TransformerObjective(model(case), compiled=False)
        x, sos = objective.stream(io["x_BLC_wo_prefix"], *padded_text(case), plan)
        logits = model(case).logits(x, sos[:, None]).flatten(-2)
    torch.testing.assert_close(x[:, -64:], io["block_last_out_tail64"], atol=2e-5, rtol=0)
    torch.testing.assert_close(logits, io["logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", ["a", "b"])
@pytest.mark.parametrize(("weights", "name"), [("uniform", "mean"), ("reweighted", "reweighted")])
def test_losses(case: str, weights: str, name: str) -> None:
    result = step(case, weights)
    expected = recorded(case)[f"loss_{name}"][0]
    torch.testing.assert_close(result.loss, expected, atol=1e-5, rtol=0)
    accuracy = recorded(case)["logits"].unflatten(-1, (-1, 2)).argmax(-1)
    right = (accuracy == recorded(case)["gt_bits"]).float().mean(-1).mean(0)
    counts = list(schedule(case).tokens_per_scale)
    means = torch.stack([part.mean() for part in right.split(counts)])
    torch.testing.assert_close(result.scale_accuracies, means, atol=1e-6, rtol=0)


@pytest.mark.parametrize("case", ["a", "b"])
def test_self_correction_inputs_and_labels(case: str) -> None:
    io, patchify = recorded(case), model(case).config.patchify
    grids = schedule(case).latent_grids(patchify)
    inputs, labels = self_correction(io["raw_features"], grids, patchify=patchify)
    torch.testing.assert_close(inputs, io["x_BLC_wo_prefix"], atol=2e-6, rtol=0)
    assert torch.equal(labels, io["gt_bits"].bool())

    numpy_rng = np.random.RandomState(5)
    generator = torch.Generator().manual_seed(6)

    def flip(scale: int, bits: Tensor) -> Tensor:
        if scale >= 3:
            return bits
        strength = numpy_rng.randint(0, 31) * 0.01
        noise = torch.rand(bits.unsqueeze(1).shape, generator=generator)[:, 0]
        return bits ^ (noise < strength)

    inputs, labels = self_correction(io["raw_features"], grids, flip, patchify=patchify)
    torch.testing.assert_close(inputs, io["noisy_x_BLC_wo_prefix"], atol=2e-6, rtol=0)
    assert torch.equal(labels, io["noisy_gt_bits"].bool())
    assert not torch.equal(io["noisy_gt_bits"], io["gt_bits"])


@pytest.mark.parametrize("scales", [1, 2, 6, 10])
def test_attention_equals_one_masked_call(scales: int) -> None:
    square = scale_schedule(1.0, "0.25M")
    config = model("a").config
    plan = sequence_plan(square, scales, config, "uniform", torch.device("cpu"))
    tokens = square.offsets[scales]
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, tokens, 2, 8, generator=generator)
    mask = plan.levels[:, None] >= plan.levels
    whole = torch.nn.functional.scaled_dot_product_attention(
        *(t.transpose(1, 2) for t in (q, k, v)), attn_mask=mask, scale=1.0
    ).transpose(1, 2)
    parts = block_causal_attention(q, k, v, plan.mask, plan.spans)
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=0)
