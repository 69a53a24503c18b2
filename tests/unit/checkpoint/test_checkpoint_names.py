"""Names of tensors: all mistakes at once, older names, what may be missing."""

import dataclasses
import logging

import pytest
import torch
from spec_shapes import transformer_shapes
from toy_checkpoint import TOKENIZER, TRANSFORMER, State, assert_equal, loaded, random_state

from infinity.checkpoint import load_into
from infinity.errors import UserError
from infinity.tokenizer.autoencoder import BSQTokenizer
from infinity.transformer.model import InfinityTransformer


def test_all_problems_are_reported_at_once(transformer: State) -> None:
    transformer["extra.weight"] = torch.zeros(1)
    del transformer["head.bias"]
    transformer["word_embed.weight"] = torch.zeros(64, 9)
    with pytest.raises(UserError) as error:
        loaded(TRANSFORMER, transformer)
    message = str(error.value)
    assert "1 missing: head.bias" in message
    assert "1 unexpected: extra.weight" in message
    assert "1 misshapen: word_embed.weight [64, 9] instead of [64, 8]" in message


def test_legacy_leftovers_and_missing_zero_biases_are_accepted(transformer: State) -> None:
    expected = dict(transformer)
    for key in list(transformer):
        if key.endswith("zero_k_bias"):
            del transformer[key]
    for key in ("lvl_1L", "attn_bias_for_masking", "Infinity_visible_kvlen"):
        transformer[key] = torch.ones(3)
    transformer["block_chunks.0.module.0.ln_wo_grad.weight"] = torch.ones(64)
    scale = "block_chunks.1.module.1.sa.scale_mul_1H11"
    transformer[scale] = transformer[scale].view(1, 1, 4, 1)
    assert_equal(loaded(TRANSFORMER, transformer), expected)


@pytest.mark.parametrize(("stored", "wanted"), [(2, 1), (1, 2), (4, 2), (2, 4)])
def test_either_block_naming_fills_the_model(stored: int, wanted: int) -> None:
    source = dataclasses.replace(TRANSFORMER, block_chunks=stored)
    target = dataclasses.replace(TRANSFORMER, block_chunks=wanted)
    state = random_state(transformer_shapes(source))
    found = loaded(target, state)
    size, other = 4 // stored, 4 // wanted
    for i in range(4):
        a = f"block_chunks.{i // size}.module.{i % size}." if stored > 1 else f"blocks.{i}."
        b = f"block_chunks.{i // other}.module.{i % other}." if wanted > 1 else f"blocks.{i}."
        assert torch.equal(found[b + "ffn.fc1.bias"], state[a + "ffn.fc1.bias"])


def test_cfg_uncond_is_cut_or_keeps_the_models_own_tail(transformer: State) -> None:
    table = transformer["cfg_uncond"]
    module = InfinityTransformer(dataclasses.replace(TRANSFORMER, text_max_tokens=20))
    with torch.no_grad():
        module.cfg_uncond.fill_(7)
    load_into(module, transformer, context="test")
    assert torch.equal(module.cfg_uncond[:16], table)
    assert bool((module.cfg_uncond[16:] == 7).all())
    short = loaded(dataclasses.replace(TRANSFORMER, text_max_tokens=5), transformer)
    assert torch.equal(short["cfg_uncond"], table[:5])


def test_values_are_cast_to_the_modules_dtype(transformer: State) -> None:
    module = InfinityTransformer(TRANSFORMER)
    load_into(module, {k: v.bfloat16() for k, v in transformer.items()}, context="test")
    assert module.head.weight.dtype == torch.float32
    assert torch.equal(module.head.weight, transformer["head.weight"].bfloat16().float())


def test_integers_do_not_pass_for_weights(transformer: State) -> None:
    transformer["head.weight"] = torch.ones(16, 64, dtype=torch.int8)
    with pytest.raises(UserError, match=r"head\.weight is int8, not floating point"):
        loaded(TRANSFORMER, transformer)


def test_tokenizer_accepts_old_names_and_ignores_strangers(
    tokenizer: State, caplog: pytest.LogCaptureFixture
) -> None:
    old = {
        key.replace(".conv.conv.", ".conv.")
        if "sample" in key
        else key.replace(".conv.", ".").replace(".norm.", "."): value
        for key, value in tokenizer.items()
    }
    assert "encoder.down.0.downsample.conv.weight" in old
    assert "encoder.down.0.block.0.norm1.weight" in old
    old |= {"quantizer.lfq.mask": torch.ones(8), "perceptual_model.lin0": torch.ones(1)}
    module = BSQTokenizer(TOKENIZER)
    with caplog.at_level(logging.INFO, logger="infinity"):
        load_into(module, old, context="vae.pth")
    assert_equal(module.state_dict(), tokenizer)
    assert "perceptual_model.lin0" in caplog.text


def test_unknown_layers_of_the_autoencoder_are_not_ignored(tokenizer: State) -> None:
    tokenizer["encoder.mid.attn_1.q.conv.weight"] = torch.ones(1)
    with pytest.raises(UserError, match=r"1 unexpected: encoder\.mid\.attn_1"):
        load_into(BSQTokenizer(TOKENIZER), tokenizer, context="vae.pth")
