"""The tokenizer against tensors recorded from the public implementation
(tests/golden/bsq_vae/README.md).
"""

import hashlib
import json
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from infinity.config import TokenizerConfig
from infinity.tokenizer.autoencoder import BSQTokenizer
from infinity.tokenizer.quantizer import (
    accumulate,
    area_down,
    bits_to_tokens,
    encode_residuals,
    next_scale_input,
    self_correction,
    sum_codes,
    to_bits,
    tokens_to_bits,
)
from infinity.training.quantizer_loss import quantize_scale, quantize_scales

FIXTURES = Path(__file__).parent / "bsq_vae"
CASES = ["tiny_p4_d12", "d32_p16_b32", "d14_p8_b32_patchify"]


def manifest(case: str) -> dict:
    return json.loads((FIXTURES / f"{case}.manifest.json").read_text())


def recipe_tensor(key: str, shape: tuple[int, ...], salt: str) -> Tensor:
    start = np.uint32(zlib.crc32((salt + key).encode()))
    count = int(np.prod(shape))
    with np.errstate(over="ignore"):
        x = start + np.arange(count, dtype=np.uint32) * np.uint32(0x9E3779B9)
        x ^= x >> np.uint32(16)
        x *= np.uint32(0x85EBCA6B)
        x ^= x >> np.uint32(13)
        x *= np.uint32(0xC2B2AE35)
        x ^= x >> np.uint32(16)
    v = ((x >> np.uint32(16)).astype(np.float64) - 32768) / 32768
    if len(shape) == 4:
        v = v * np.sqrt(3 / (shape[1] * shape[2] * shape[3]))
    elif key.endswith(".norm.weight"):
        v = 1 + 0.2 * v
    elif key.endswith(".norm.bias"):
        v = 0.1 * v
    else:
        v = 0.05 * v
    return torch.from_numpy(v.astype(np.float32)).view(shape)


@cache
def tokenizer(case: str) -> BSQTokenizer:
    config = manifest(case)["config"]
    model = BSQTokenizer(
        TokenizerConfig(
            codebook_dim=config["codebook_dim"],
            patch_size=config["patch_size"],
            channels=config["base_ch"],
            channel_multipliers=tuple(config["ch_mult"]),
            res_blocks=config["num_res_blocks"],
        )
    )
    state = {
        key: recipe_tensor(key, tuple(value.shape), config["weight_salt"])
        for key, value in model.state_dict().items()
    }
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


@cache
def recorded(case: str) -> dict[str, Tensor]:
    return load_file(FIXTURES / f"{case}.io.safetensors")


def grids(case: str) -> tuple[tuple[int, int], ...]:
    return tuple((h, w) for _, h, w in manifest(case)["config"]["vae_schedule"])


def patchified(case: str) -> bool:
    return bool(manifest(case)["config"]["apply_spatial_patchify"])


def image(case: str) -> Tensor:
    x = recorded(case)["image_u8"].float() / 255
    return x + x - 1


def bits(case: str, name: str = "bits") -> list[Tensor]:
    io = recorded(case)
    return [io[f"{name}.{k:02d}"][:, 0] for k in range(len(grids(case))) if f"{name}.{k:02d}" in io]


@pytest.mark.parametrize("case", CASES)
def test_state_dict_and_recipe_equal_the_manifest(case: str) -> None:
    stored = {k: v for k, v in manifest(case)["tensors"].items() if not k.endswith("lfq.mask")}
    state = tokenizer(case).state_dict()
    assert set(state) == set(stored)
    for key, value in state.items():
        assert list(value.shape) == stored[key]["shape"]
        digest = hashlib.sha256(value.numpy().astype("<f4").tobytes()).hexdigest()
        assert digest[:16] == stored[key]["sha256_16"], key


@pytest.mark.parametrize("case", CASES)
def test_image_to_bits_and_back(case: str) -> None:
    model, io = tokenizer(case), recorded(case)
    f, z, labels = model.encode(image(case), grids(case))
    torch.testing.assert_close(f, io["features"], atol=2e-5, rtol=0)
    torch.testing.assert_close(z, io["z"], atol=1e-6, rtol=0)
    for ours, theirs in zip(labels, bits(case), strict=True):
        assert torch.equal(ours, theirs.bool())
    summed, decoded = model.decode_from_bits(bits(case), grids(case)[-1])
    torch.testing.assert_close(summed, io["summed_codes"][:, :, 0], atol=1e-6, rtol=0)
    torch.testing.assert_close(decoded, io["recon_from_bits"], atol=2e-5, rtol=0)
    torch.testing.assert_close(model.decoder(io["z"]), io["recon_unclamped"], atol=2e-5, rtol=0)
    u8 = ((decoded + 1) / 2 * 255).to(torch.uint8).permute(0, 2, 3, 1).flip(-1).int()
    difference = (u8 - io["out_u8_bgr"].int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() <= 1e-3


@pytest.mark.parametrize("case", CASES)
def test_quantiser_from_stored_features(case: str) -> None:
    io, f = recorded(case), recorded(case)["features"]
    z, labels = encode_residuals(f, grids(case))
    torch.testing.assert_close(z, io["z"], atol=1e-6, rtol=0)
    latent = torch.zeros_like(f)
    for k, grid in enumerate(grids(case)):
        residual = area_down(f - latent, grid)
        torch.testing.assert_close(residual, io[f"prequant.{k:02d}"][:, :, 0], atol=1e-6, rtol=0)
        assert torch.equal(to_bits(io[f"prequant.{k:02d}"][:, :, 0]), bits(case)[k].bool())
        assert torch.equal(labels[k], bits(case)[k].bool())
        latent = accumulate(latent, labels[k])
        if k + 1 < len(grids(case)):
            pooled = area_down(latent, grids(case)[k + 1])
            expected = io[f"next_input_area.{k:02d}"][:, :, 0]
            torch.testing.assert_close(pooled, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_transformer_inputs_and_labels(case: str) -> None:
    io, f, patchify = recorded(case), recorded(case)["features"], patchified(case)
    inputs, labels = self_correction(f, grids(case), patchify=patchify)
    torch.testing.assert_close(inputs, io["ar_input"], atol=1e-6, rtol=0)
    assert torch.equal(labels, io["ar_labels"].bool())
    for k, grid in enumerate(grids(case)):
        tokens = bits_to_tokens(bits(case)[k], patchify)
        assert torch.equal(tokens_to_bits(tokens, grid, patchify), bits(case)[k])
        if k:
            latent = sum_codes(bits(case)[:k], grids(case)[-1])
            one = next_scale_input(latent, grid, patchify)
            start = sum(len(bits(case)[j][0].flatten(0, 1)) for j in range(1, k))
            start //= 4 if patchify else 1
            expected = io["ar_input"][:, start : start + one.shape[1]]
            torch.testing.assert_close(one, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_self_correction_replays_recorded_flips(case: str) -> None:
    io, fed = recorded(case), bits(case, "noisy_fed_bits")
    inputs, labels = self_correction(
        io["features"], grids(case), lambda k, _: fed[k], patchify=patchified(case)
    )
    torch.testing.assert_close(inputs, io["noisy_ar_input"], atol=1e-6, rtol=0)
    assert torch.equal(labels, io["noisy_ar_labels"].bool())
    assert not torch.equal(io["noisy_ar_labels"], io["ar_labels"])


@pytest.mark.parametrize("case", CASES)
def test_intermediate_activations(case: str) -> None:
    expected = json.loads((FIXTURES / f"{case}.activations.json").read_text())
    model, seen = tokenizer(case), {}
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda _, __, out, name=name: seen.__setitem__(name, out)
        )
        for name in expected
    ]
    try:
        model.encode_features(image(case))
        model.decode(recorded(case)["z"])
    finally:
        for hook in hooks:
            hook.remove()
    for name, record in expected.items():
        out = seen[name]
        assert list(out.shape) == record["shape"]
        flat = out.flatten()
        ends = torch.cat([flat[:8], flat[-4:]])
        stored = torch.tensor(record["first8"] + record["last4"])
        torch.testing.assert_close(ends, stored, atol=2e-5, rtol=0)
        assert abs(out.double().mean().item() - record["mean"]) < 2e-5
        assert abs(out.double().std(correction=0).item() - record["std"]) < 2e-5


def test_training_quantiser_of_one_scale() -> None:
    io = load_file(FIXTURES / "train_quantiser_d12.safetensors")
    x = io["one.x"][:, :, 0].clone().requires_grad_()
    scale = quantize_scale(x)
    torch.testing.assert_close(
        scale.codes.detach(), io["one.quantized"][:, :, 0], atol=1e-6, rtol=0
    )
    assert torch.equal(to_bits(x), io["one.bits"][:, 0].bool())
    for ours, name in [
        (scale.sample_entropy, "sample_entropy"),
        (scale.batch_entropy, "batch_entropy"),
        (scale.commitment, "commit"),
        (scale.loss, "aux_loss"),
    ]:
        torch.testing.assert_close(ours.detach(), io[f"one.{name}"], atol=0, rtol=1e-5)
    scale.loss.backward()
    torch.testing.assert_close(x.grad, io["one.grad_x"][:, :, 0], atol=1e-7, rtol=1e-4)


def test_training_quantiser_of_many_scales() -> None:
    io = load_file(FIXTURES / "train_quantiser_d12.safetensors")
    kept_sizes = io["ms.kept_sizes"].tolist()
    x = io["ms.x"].clone().requires_grad_()
    sides = range(1, 17)
    codes, losses = quantize_scales(x, [(s, s) for s in sides], [s in kept_sizes for s in sides])
    z, stacked = sum(codes), torch.stack(losses)
    torch.testing.assert_close(z.detach(), io["ms.z"], atol=1e-6, rtol=0)
    torch.testing.assert_close(stacked.detach(), io["ms.losses"], atol=5e-9, rtol=1e-5)
    total = (z * io["ms.g"]).mean() + 4 * stacked.mean()
    torch.testing.assert_close(total.detach(), io["ms.total"], atol=0, rtol=1e-5)
    total.backward()
    torch.testing.assert_close(x.grad, io["ms.grad_x"], atol=1e-7, rtol=1e-4)
