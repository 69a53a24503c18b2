"""Every key and shape of the released models against the specification, without their weights."""

import json
from math import prod
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from spec_shapes import tokenizer_shapes, transformer_shapes

from infinity.checkpoint.infer import infer_tokenizer, infer_transformer, paired
from infinity.checkpoint.load import shapes_of_module
from infinity.checkpoint.official import read_transformer
from infinity.config import PRESETS, TokenizerConfig, TransformerConfig
from infinity.tokenizer.autoencoder import BSQTokenizer
from infinity.transformer.model import InfinityTransformer

GOLDEN = Path(__file__).parents[2] / "golden"
MANIFESTS = GOLDEN / "bsq_vae"


@pytest.mark.parametrize("name", PRESETS)
def test_transformer_keys_and_shapes(name: str) -> None:
    config = PRESETS[name].transformer
    with torch.device("meta"):
        module = InfinityTransformer(config)
    assert shapes_of_module(module) == transformer_shapes(config)


@pytest.mark.parametrize(
    ("name", "billions"),
    [("infinity-125m", 0.125), ("infinity-2b", 2.20), ("infinity-8b", 8.38)],
)
def test_transformer_parameter_counts(name: str, billions: float) -> None:
    with torch.device("meta"):
        module = InfinityTransformer(PRESETS[name].transformer)
    count = sum(p.numel() for p in module.parameters())
    assert count / 1e9 == pytest.approx(billions, abs=0.005)


@pytest.mark.parametrize("name", PRESETS)
def test_tokenizer_keys_and_shapes(name: str) -> None:
    config = PRESETS[name].tokenizer
    with torch.device("meta"):
        module = BSQTokenizer(config)
    gains = {"quantizer.scale_gains": (config.scale_gains,)} if config.scale_gains else {}
    assert shapes_of_module(module) == tokenizer_shapes(config) | gains


@pytest.mark.parametrize("bits", [14, 16, 18, 20, 24, 32, 64])
@pytest.mark.parametrize("patch_size", [8, 16])
def test_tokenizer_parameter_counts(bits: int, patch_size: int) -> None:
    multipliers = (1, 2, 4, 4) if patch_size == 8 else (1, 2, 4, 4, 4)
    config = TokenizerConfig(
        codebook_dim=bits, patch_size=patch_size, channel_multipliers=multipliers
    )
    counts = {
        side: sum(prod(s) for k, s in tokenizer_shapes(config).items() if k.startswith(side))
        for side in ("encoder", "decoder")
    }
    encoder, decoder = (44878208, 64944899) if patch_size == 16 else (33075072, 48420099)
    assert counts == {"encoder": encoder + 4609 * bits, "decoder": decoder + 4608 * bits}


@pytest.mark.parametrize("path", sorted(MANIFESTS.glob("*.manifest.json")), ids=lambda p: p.name)
def test_tokenizer_keys_equal_the_reference_lists(path: Path) -> None:
    manifest = json.loads(path.read_text())
    c = manifest["config"]
    config = TokenizerConfig(
        codebook_dim=c["codebook_dim"],
        patch_size=c["patch_size"],
        channels=c["base_ch"],
        channel_multipliers=tuple(c["ch_mult"]),
        res_blocks=c["num_res_blocks"],
    )
    listed = {key: tuple(entry["shape"]) for key, entry in manifest["tensors"].items()}
    masks = {key for key in listed if key.endswith("lfq.mask")}
    assert {k: s for k, s in listed.items() if k not in masks} == tokenizer_shapes(config)
    assert infer_tokenizer(listed, path) == config


@pytest.mark.parametrize("name", ["a", "b"])
def test_reference_state_dicts_have_the_specified_keys(name: str) -> None:
    path = GOLDEN / "infinity" / f"{name}_state.safetensors"
    with safe_open(path, framework="pt") as file:
        settings = json.loads(file.metadata()["config"])
    patchify = bool(settings["apply_spatial_patchify"])
    config = TransformerConfig(
        depth=settings["depth"],
        width=settings["embed_dim"],
        heads=settings["num_heads"],
        block_chunks=settings["block_chunks"],
        codebook_dim=settings["d"],
        patchify=patchify,
        text_width=settings["text_channels"],
        text_max_tokens=settings["text_maxlen"],
    )
    state = read_transformer(path)
    assert state.shapes == transformer_shapes(config)
    tokenizer = TokenizerConfig(codebook_dim=settings["d"], patch_size=8 if patchify else 16)
    found = infer_transformer(state.shapes, path)
    assert paired(found, path, tokenizer, Path("vae.pth")) == config
