"""Metric networks on random weights: the files' names, the arithmetic around them, refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from infinity.errors import UserError
from stepvar_patch.experiments.metrics.clip import centre_square, from_open_clip
from stepvar_patch.experiments.metrics.image_reward import build
from stepvar_patch.experiments.metrics.inception import Inception
from stepvar_patch.experiments.metrics.lpips import Lpips
from stepvar_patch.experiments.metrics.weights import read_tensors
from stepvar_patch.experiments.scorers.distances import resize_for_inception


def lpips_files(folder: Path) -> tuple[Path, Path]:
    torch.manual_seed(0)
    network = Lpips()
    trunk = {f"features.{k}": v for k, v in network.features.state_dict().items()}
    trunk["classifier.1.weight"] = torch.zeros(1)
    heads = {f"lin{k[0]}.model.1.weight": v.abs() for k, v in network.heads.state_dict().items()}
    torch.save(trunk, folder / "alexnet.pth")
    torch.save(heads, folder / "alex.pth")
    return folder / "alexnet.pth", folder / "alex.pth"


def test_lpips_is_zero_for_equal_pictures_and_grows_with_the_error(tmp_path: Path) -> None:
    network = Lpips.load(*lpips_files(tmp_path))
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    noise = torch.randn_like(image)
    none, little, much = (float(network(image, image + s * noise)) for s in (0, 0.05, 0.5))
    assert none == 0
    assert 0 < little < much


def test_lpips_is_the_weighted_difference_of_unit_features(tmp_path: Path) -> None:
    network = Lpips.load(*lpips_files(tmp_path))
    a, b = torch.rand(2, 1, 3, 64, 64) * 2 - 1
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
    expected, x, y = 0.0, (a - shift) / scale, (b - shift) / scale
    for i, layer in enumerate(network.features):
        x, y = layer(x), layer(y)
        if isinstance(layer, nn.ReLU):
            head = network.heads[[1, 4, 7, 9, 11].index(i)].weight
            u, v = x / x.norm(dim=1, keepdim=True), y / y.norm(dim=1, keepdim=True)
            expected += float(((u - v).square() * head.view(1, -1, 1, 1)).sum(1).mean())
    assert float(network(a, b)) == pytest.approx(expected, rel=1e-4)


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    backbone, _ = lpips_files(tmp_path)
    with pytest.raises(UserError, match=r"alexnet.pth: not the expected network"):
        Lpips.load(backbone, backbone)
    torch.save({"a": torch.zeros(1)}, tmp_path / "i.pth")
    with pytest.raises(UserError, match=r"i.pth: not the expected network"):
        Inception.load(tmp_path / "i.pth")


def test_pickled_code_is_never_run(tmp_path: Path) -> None:
    torch.save({"network": nn.Linear(1, 1)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="refused"):
        read_tensors(tmp_path / "w.pth")


def test_inception_has_the_published_names_and_sizes(tmp_path: Path) -> None:
    network = Inception()
    state = network.state_dict()
    assert sum(p.numel() for p in network.parameters()) == 23_850_960
    assert state["Mixed_7c.branch3x3dbl_3b.conv.weight"].shape == (384, 384, 3, 1)
    torch.save({k: v for k, v in state.items() if "num_batches" not in k}, tmp_path / "i.pth")
    features, logits = Inception.load(tmp_path / "i.pth")(torch.zeros(1, 3, 299, 299))
    assert features.shape == (1, 2048)
    assert logits.shape == (1, 1008)


def test_clean_resizing_is_pillows_bicubic_on_floats() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    ours = resize_for_inception(torch.from_numpy(pixels)[None], "clean")[0] * 128 + 128
    for channel in range(3):
        plane = Image.fromarray(pixels[..., channel].astype(np.float32))
        expected = np.asarray(plane.resize((299, 299), Image.Resampling.BICUBIC)).clip(0, 255)
        np.testing.assert_allclose(ours[channel].numpy(), expected, atol=0.02)


def test_tensorflow_resizing_samples_without_antialiasing() -> None:
    ramp = torch.arange(598, dtype=torch.uint8).repeat(598, 1)[None, :, :, None].repeat(1, 1, 1, 3)
    found = resize_for_inception(ramp, "tensorflow")[0, 0, 0, :128] * 128 + 128
    assert found.tolist() == [float(2 * i) for i in range(128)]


def test_an_openclip_file_gives_the_same_embeddings_under_transformers() -> None:
    from transformers import CLIPConfig, CLIPModel

    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    tower |= {"num_attention_heads": 4, "hidden_act": "gelu"}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            text_config={**tower, "vocab_size": 50, "max_position_embeddings": 9,
                         "eos_token_id": 49, "bos_token_id": 48},
            vision_config={**tower, "image_size": 28, "patch_size": 14},
            projection_dim=16,
        )
    ).eval()  # fmt: skip
    rebuilt = from_open_clip(as_open_clip(model), "x.pt", vision_heads=4, text_heads=4).eval()
    ids = torch.tensor([[48, 3, 7, 49, 0, 0, 0, 0, 0]])
    pixels = torch.randn(2, 3, 28, 28)
    for call in (
        lambda m: m.get_text_features(input_ids=ids).pooler_output,
        lambda m: m.get_image_features(pixel_values=pixels).pooler_output,
    ):
        torch.testing.assert_close(call(rebuilt), call(model))
    with pytest.raises(UserError, match=r"x.pt: not the weights of an OpenCLIP model"):
        from_open_clip({"a": ids}, "x.pt", vision_heads=4, text_heads=4)


def as_open_clip(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state under OpenCLIP's names, written out by hand for two layers."""
    s = model.state_dict()
    out = {
        "logit_scale": s["logit_scale"],
        "text_projection": s["text_projection.weight"].T,
        "visual.proj": s["visual_projection.weight"].T,
        "token_embedding.weight": s["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": s["text_model.embeddings.position_embedding.weight"],
        "visual.class_embedding": s["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": s["vision_model.embeddings.position_embedding.weight"],
        "visual.conv1.weight": s["vision_model.embeddings.patch_embedding.weight"],
    }
    for kind in ("weight", "bias"):
        out[f"ln_final.{kind}"] = s[f"text_model.final_layer_norm.{kind}"]
        out[f"visual.ln_pre.{kind}"] = s[f"vision_model.pre_layrnorm.{kind}"]
        out[f"visual.ln_post.{kind}"] = s[f"vision_model.post_layernorm.{kind}"]
        for side, tower in (("", "text"), ("visual.", "vision")):
            for i in range(2):
                a, b = f"{side}transformer.resblocks.{i}", f"{tower}_model.encoder.layers.{i}"
                out[f"{a}.attn.in_proj_{kind}"] = torch.cat(
                    [s[f"{b}.self_attn.{x}_proj.{kind}"] for x in "qkv"]
                )
                out[f"{a}.attn.out_proj.{kind}"] = s[f"{b}.self_attn.out_proj.{kind}"]
                out[f"{a}.ln_1.{kind}"] = s[f"{b}.layer_norm1.{kind}"]
                out[f"{a}.ln_2.{kind}"] = s[f"{b}.layer_norm2.{kind}"]
                out[f"{a}.mlp.c_fc.{kind}"] = s[f"{b}.mlp.fc1.{kind}"]
                out[f"{a}.mlp.c_proj.{kind}"] = s[f"{b}.mlp.fc2.{kind}"]
    return out


def test_an_imagereward_file_fills_all_three_parts() -> None:
    state = image_reward_state()
    vision, text, head = build(state, "x.pt", vision_heads=2, text_heads=2)
    fused = vision.state_dict()["encoder.layers.0.self_attn.qkv.weight"]
    assert torch.equal(fused, state["blip.visual_encoder.blocks.0.attn.qkv.weight"])
    seen = vision(pixel_values=torch.zeros(1, 3, 32, 32)).last_hidden_state
    read = text(input_ids=torch.tensor([[1, 2]]), encoder_hidden_states=seen).last_hidden_state
    assert head(read[:, 0]).shape == (1, 1)
    state.pop("mlp.layers.0.weight")
    with pytest.raises(UserError, match=r"x.pt: not the expected network \(0.weight is missing"):
        build(state, "x.pt", vision_heads=2, text_heads=2)


def image_reward_state() -> dict[str, torch.Tensor]:
    def linear(name: str, outputs: int, inputs: int) -> dict[str, torch.Tensor]:
        return {
            f"{name}.weight": torch.randn(outputs, inputs),
            f"{name}.bias": torch.zeros(outputs),
        }

    def norm(name: str, width: int) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": torch.ones(width), f"{name}.bias": torch.zeros(width)}

    v, t = "blip.visual_encoder", "blip.text_encoder"
    state = {
        f"{v}.cls_token": torch.zeros(1, 1, 8),
        f"{v}.pos_embed": torch.zeros(1, 5, 8),
        f"{v}.patch_embed.proj.weight": torch.randn(8, 3, 16, 16),
        f"{v}.patch_embed.proj.bias": torch.zeros(8),
        **linear(f"{v}.blocks.0.attn.qkv", 24, 8),
        **linear(f"{v}.blocks.0.attn.proj", 8, 8),
        **linear(f"{v}.blocks.0.mlp.fc1", 16, 8),
        **linear(f"{v}.blocks.0.mlp.fc2", 8, 16),
        **norm(f"{v}.blocks.0.norm1", 8),
        **norm(f"{v}.blocks.0.norm2", 8),
        **norm(f"{v}.norm", 8),
        f"{t}.embeddings.word_embeddings.weight": torch.randn(20, 12),
        f"{t}.embeddings.position_embeddings.weight": torch.randn(10, 12),
        f"{t}.embeddings.position_ids": torch.arange(10)[None],
        **norm(f"{t}.embeddings.LayerNorm", 12),
    }
    layer = f"{t}.encoder.layer.0"
    for part, inputs in (("attention", 12), ("crossattention", 8)):
        state |= linear(f"{layer}.{part}.self.query", 12, 12)
        state |= linear(f"{layer}.{part}.self.key", 12, inputs)
        state |= linear(f"{layer}.{part}.self.value", 12, inputs)
        state |= linear(f"{layer}.{part}.output.dense", 12, 12)
        state |= norm(f"{layer}.{part}.output.LayerNorm", 12)
    state |= linear(f"{layer}.intermediate.dense", 16, 12)
    state |= linear(f"{layer}.output.dense", 12, 16) | norm(f"{layer}.output.LayerNorm", 12)
    widths = (12, 1024, 128, 64, 16, 1)
    for i in range(5):
        state |= linear(f"mlp.layers.{2 * i}", widths[i + 1], widths[i])
    return state


def test_pictures_are_scaled_by_the_shorter_side_and_cut_in_the_middle() -> None:
    image = torch.zeros(1, 20, 40, 3, dtype=torch.uint8)
    image[:, :, 10:30] = 255
    x = centre_square(image, 20)
    assert x.shape == (1, 3, 20, 20)
    white = (1 - 0.48145466) / 0.26862954
    assert x[0, 0].flatten().tolist() == pytest.approx([white] * 400, abs=1e-4)
