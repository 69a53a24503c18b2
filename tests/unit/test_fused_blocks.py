"""The fused blocks and the fused decoder against the modules that define them.

The kernels themselves run on CPU tensors with ``TRITON_INTERPRET=1`` where triton is installed, and
with ``-m gpu`` on a CUDA device.
"""

import pytest
import torch

from infinity.config import TokenizerConfig
from infinity.ops.fused.group_norm import reference_interleave
from infinity.ops.fused.quantise import quantise
from infinity.ops.fused.residual_norm import Quantised
from infinity.policy import PruningPolicy
from infinity.sampling.loop import ScaleEnd
from infinity.sampling.noise import PerImageNoise
from infinity.schedule import scale_schedule
from infinity.tokenizer.autoencoder import BSQTokenizer, Upsample
from infinity.tokenizer.fused import FusedDecoder, _Upsampling
from infinity.transformer import fused as fused_blocks
from infinity.transformer.fused import FusedBlocks
from infinity.transformer.fused_weights import Product
from infinity.transformer.guidance import Guidance
from stepvar_patch.policies import FastVARPolicy, StepVARPolicy, ToMePolicy
from tests.property.scripted import Scripted
from tests.toy import toy_model, toy_run, toy_settings, toy_text
from tests.unit.kernels.kernel_cases import CUDA, devices

anywhere = pytest.mark.parametrize("device", ["cpu", CUDA])
"""On a CPU without the interpreter, the torch form of every kernel takes its place."""

POLICIES: dict[str, PruningPolicy | None] = {
    "dense": None,
    "ragged": Scripted(counts=(40, 17)),
    "range": Scripted(counts=(20, 20), plan={"layers": (1, 2)}),
    "uncached": Scripted(counts=(9, 9), plan={"kv_write": "none"}),
    "one half": Scripted(plan={"rows": "cond", "guidance": 1.0}),
    "fastvar": FastVARPolicy(),
    "layer": StepVARPolicy(scope="layer"),
    "branch": StepVARPolicy(scope="branch"),
    "ragged branch": Scripted(counts=(40, 17), inside="branch"),
    "merged": ToMePolicy(),
    "propagate": StepVARPolicy(kv_write="propagate"),
}


MODEL = toy_model().requires_grad_(False)


def run(
    policy: PruningPolicy | None,
    device: str,
    fused: bool | FusedBlocks,
    guidance: Guidance | None = None,
) -> list[ScaleEnd]:
    model, schedule = MODEL.to(device), scale_schedule(1.0, "0.06M")
    ends: list[ScaleEnd] = []
    toy_run(
        model,
        toy_text(model, (3, 5)),
        schedule,
        settings=toy_settings(schedule, guidance=guidance, top_p=0.0),
        policy=policy,
        noise=PerImageNoise([5, 6], device),
        fused=(fused if isinstance(fused, FusedBlocks) else FusedBlocks(model)) if fused else None,
        on_scale_end=ends,
    )
    return ends


@anywhere
@pytest.mark.parametrize("name", POLICIES)
def test_fused_blocks_give_the_same_logits(device: str, name: str) -> None:
    plain, fused = (run(POLICIES[name], device, on) for on in (False, True))
    for a, b in zip(plain, fused, strict=True):
        torch.testing.assert_close(a.logits, b.logits, atol=2e-4, rtol=2e-4)
        assert torch.equal(a.bits, b.bits)


@anywhere
@pytest.mark.parametrize("layers", [frozenset({1}), frozenset({0, 2})])
def test_fused_blocks_with_hidden_guidance(device: str, layers: frozenset[int]) -> None:
    guidance = Guidance(layers, False)
    plain, fused = (run(None, device, on, guidance) for on in (False, True))
    torch.testing.assert_close(plain[-1].logits, fused[-1].logits, atol=2e-4, rtol=2e-4)


@anywhere
@pytest.mark.parametrize("inside", [None, "layer", "branch"])
def test_keeping_everything_is_dense_bit_for_bit(device: str, inside: str | None) -> None:
    dense = run(None, device, True)
    kept = run(Scripted(inside=inside), device, True)
    assert torch.equal(dense[-1].latent, kept[-1].latent)
    assert torch.equal(dense[-1].logits, kept[-1].logits)


@anywhere
@pytest.mark.parametrize("name", ["dense", "ragged", "one half", "fastvar", "layer"])
def test_blocks_in_fp8_stay_near_the_plain_ones(
    device: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All large products get their input in fp8; cuBLASLt's own product is left out."""

    def refuse(*_args: object) -> None:
        raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED")

    monkeypatch.setattr(Product, "_scaled", refuse)
    monkeypatch.setattr(fused_blocks, "_FP8_TOKENS", 1)
    seen: list[Product] = []
    product = Product.__call__

    def watched(self: Product, h: torch.Tensor | Quantised) -> torch.Tensor:
        if isinstance(h, Quantised):
            seen.append(self)
        return product(self, h)

    monkeypatch.setattr(Product, "__call__", watched)
    blocks = FusedBlocks(MODEL.to(device), fp8=True)
    exact, near = run(POLICIES[name], device, False), run(POLICIES[name], device, blocks)
    error = (exact[0].logits - near[0].logits).norm() / exact[0].logits.norm()
    assert 0 < error < 0.1
    for layer in blocks.layers:
        large = (layer.qkv, layer.proj, layer.text_q, layer.text_proj, layer.up, layer.down)
        assert set(large) - set(seen) <= ({layer.proj} if device != "cpu" else set())


@torch.inference_mode()
@pytest.mark.parametrize("shape", [(1, 8, 1, 1), (2, 8, 5, 4), (3, 6, 1, 7)])
def test_upsampling_in_sub_pixel_form(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, plain = torch.randn(shape), Upsample(shape[1])
    fast = _Upsampling(plain.conv, torch.float32)
    pixels = reference_interleave(fast(x).permute(0, 2, 3, 1)) + fast.bias
    exact = plain(x)
    torch.testing.assert_close(pixels.mT.reshape(exact.shape), exact, rtol=1e-6, atol=1e-6)


@devices
@pytest.mark.parametrize("channels", [(1, 2), (1, 1, 3)])
@pytest.mark.parametrize("images", [1, 2])
def test_fused_decoder(device: str, channels: tuple[int, ...], images: int) -> None:
    config = TokenizerConfig(
        codebook_dim=6, patch_size=2, channels=32, channel_multipliers=channels, res_blocks=1
    )
    torch.manual_seed(0)
    decoder = BSQTokenizer(config).eval().requires_grad_(False).decoder
    for parameter in decoder.parameters():
        if parameter.ndim == 1:
            parameter.add_(0.2 * torch.randn(parameter.shape))
    decoder.to(device)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    z = torch.randn(images, 6, 5, 7, generator=torch.Generator().manual_seed(1)).to(device)
    exact, fast = decoder(z).clamp(-1, 1), FusedDecoder(decoder, dtype)(z)
    limit = 1e-5 if device == "cpu" else 3e-2
    assert (fast - exact).norm() / exact.norm() < limit


@pytest.mark.parametrize("message", ["CUBLAS_STATUS_NOT_SUPPORTED when calling", "out of luck"])
def test_a_product_that_fp8_lacks_runs_in_the_weights_dtype(
    message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, bias, x = torch.randn(8, 16), torch.randn(8), torch.randn(5, 16)
    product = Product(weight, bias, True)

    def refuse(*_args: object) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(Product, "_scaled", refuse)
    if "NOT_SUPPORTED" not in message:
        with pytest.raises(RuntimeError, match="out of luck"):
            product(quantise(x))
        return
    exact = torch.nn.functional.linear(x, weight, bias)
    assert (product(quantise(x)) - exact).norm() / exact.norm() < 0.05
