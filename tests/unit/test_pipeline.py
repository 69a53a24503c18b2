"""The pipeline object on a small random model saved to disk and loaded again."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from infinity.checkpoint import save_model_directory
from infinity.config import (
    ModelConfig,
    SamplingDefaults,
    TextEncoderConfig,
    TokenizerConfig,
    TransformerConfig,
)
from infinity.errors import UserError
from infinity.pipeline import InfinityPipeline
from infinity.sampling.loop import ScaleEnd
from infinity.text.base import TextFeatures
from infinity.tokenizer.autoencoder import BSQTokenizer
from infinity.transformer.model import InfinityTransformer

CONFIG = ModelConfig(
    name="tiny",
    resolution="0.06M",
    transformer=TransformerConfig(
        depth=2,
        width=64,
        heads=2,
        block_chunks=1,
        codebook_dim=6,
        text_width=128,
        text_max_tokens=8,
    ),
    tokenizer=TokenizerConfig(
        codebook_dim=6, patch_size=2, channels=32, channel_multipliers=(1, 1), res_blocks=1
    ),
    text_encoder=TextEncoderConfig(kind="minilm", width=128, max_tokens=8),
    sampling=SamplingDefaults(guidance_scale=2.0, temperature=1.0),
)


class LetterEncoder:
    """Features from the letters of a prompt; an empty prompt has one row."""

    width, max_tokens = 128, 8

    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        return TextFeatures.stack([self._one(prompt) for prompt in prompts])

    def _one(self, prompt: str) -> Tensor:
        ids = [ord(c) for c in prompt[: self.max_tokens - 1]] + [0]
        return torch.stack(
            [torch.randn(128, generator=torch.Generator().manual_seed(i)) for i in ids]
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    transformer, tokenizer = InfinityTransformer(CONFIG.transformer), BSQTokenizer(CONFIG.tokenizer)
    for parameter in (*transformer.parameters(), *tokenizer.parameters()):
        torch.nn.init.normal_(parameter, std=0.15)
    path = tmp_path_factory.mktemp("models") / "tiny"
    save_model_directory(path, CONFIG, transformer.state_dict(), tokenizer.state_dict())
    return path


@pytest.fixture(scope="module")
def pipe(folder: Path) -> InfinityPipeline:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("infinity.pipeline.load_text_encoder", lambda *_: LetterEncoder())
        return InfinityPipeline.from_pretrained(folder, text_encoder="unused", device="cpu")


def pixels(pipe: InfinityPipeline, prompts: str | list[str], **kwargs: object) -> list[np.ndarray]:
    return pipe(prompts, output_type="np", **kwargs).images  # type: ignore[arg-type]


def test_an_image_is_its_prompt_seed_and_settings(pipe: InfinityPipeline) -> None:
    together = pixels(pipe, ["cat", "a dog", "x"], seed=[3, 4, 5])
    assert np.array_equal(together[1], pixels(pipe, "a dog", seed=4)[0])
    assert not np.array_equal(together[1], pixels(pipe, "a dog", seed=5)[0])
    assert not np.array_equal(together[1], pixels(pipe, "a cat", seed=4)[0])
    assert together[0].shape == (32, 32, 3)


def test_images_of_a_prompt_count_seeds_up(pipe: InfinityPipeline) -> None:
    out = pipe(["cat", "dog"], seed=10, num_images_per_prompt=2, output_type="np")
    assert out.seeds == (10, 11, 10, 11)
    assert np.array_equal(out.images[3], pixels(pipe, "dog", seed=11)[0])
    assert set(out.timings) == {"text", "scales", "decode"}


def test_guidance_and_negative_prompt_matter(pipe: InfinityPipeline) -> None:
    plain = pixels(pipe, "cat", seed=1, guidance_scale=1.0)[0]
    guided = pixels(pipe, "cat", seed=1)[0]
    negative = pixels(pipe, "cat", seed=1, negative_prompt="dog")[0]
    assert not np.array_equal(plain, guided)
    assert not np.array_equal(guided, negative)
    assert np.array_equal(guided, pixels(pipe, "cat", seed=1, negative_prompt="")[0])


def test_output_types_agree(pipe: InfinityPipeline) -> None:
    pil = pipe("cat", seed=1).images[0]
    array = pixels(pipe, "cat", seed=1)[0]
    tensor = pipe("cat", seed=1, output_type="pt").images[0]
    latent = pipe("cat", seed=1, output_type="latent").images[0]
    assert np.array_equal(np.asarray(pil), array)
    assert np.array_equal((tensor * 255).round().byte().permute(1, 2, 0).numpy(), array)
    assert np.array_equal(np.asarray(pipe.decode(latent[None])[0]), array)


def test_callback_sees_every_scale(pipe: InfinityPipeline) -> None:
    seen: list[ScaleEnd] = []
    out = pipe("cat", seed=1, callback_on_scale_end=seen.append)
    assert [end.scale for end in seen] == list(range(7))
    assert torch.equal(seen[-1].latent, out.latents)


@pytest.mark.parametrize(("ratio", "size"), [(1.0, (32, 32)), (4 / 3, (40, 30)), (0.5, (22, 44))])
def test_aspect_ratio_and_pixels(
    pipe: InfinityPipeline, ratio: float, size: tuple[int, int]
) -> None:
    assert pixels(pipe, "cat", seed=1, aspect_ratio=ratio)[0].shape[:2] == size
    assert pixels(pipe, "cat", seed=1, height=size[0], width=size[1])[0].shape[:2] == size


def test_compatibility_draws_one_stream_for_the_batch(pipe: InfinityPipeline) -> None:
    both = pixels(pipe, ["cat", "cat"], seed=1, compatibility=True)
    assert not np.array_equal(both[0], both[1])
    assert np.array_equal(both[0], pixels(pipe, ["cat", "cat"], seed=1, compatibility=True)[0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompts": []}, "at least one prompt"),
        ({"guidance_scale": [1.0, 2.0]}, "at least one per scale"),
        ({"guidance_scale": float("nan")}, "finite"),
        ({"temperature": 0.0}, "above 0"),
        ({"top_p": 1.5}, r"in \[0, 1\]"),
        ({"top_k": -1}, "top_k is -1"),
        ({"guidance_layers": [1]}, "guidance_layers is"),
        ({"guidance_layers": [-2]}, "guidance_layers is"),
        ({"guidance_layers": []}, "at least one"),
        ({"seed": -1}, r"\[0, 2\^63\)"),
        ({"seed": [1, 2]}, "one per prompt"),
        ({"negative_prompt": ["a", "b"]}, "one per prompt"),
        ({"aspect_ratio": 0.0}, "positive finite"),
        ({"height": 31, "width": 32}, "allowed: 32 × 32"),
        ({"height": 32}, "together"),
        ({"height": 32, "width": 32, "aspect_ratio": 1.0}, "not both"),
        ({"num_images_per_prompt": 0}, "an integer from 1"),
        ({"seed": [1], "compatibility": True}, "one seed serves the batch"),
    ],
)
def test_bad_values_name_what_is_allowed(
    pipe: InfinityPipeline, arguments: dict[str, object], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        pipe(**{"prompts": "cat", **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"device": "tpu"}, "allowed: cpu"),
        ({"device": "cuda:99"}, "CUDA devices"),
        ({"dtype": "float8"}, "allowed: float32, bfloat16"),
        ({"engine": "graphs", "device": "cpu"}, "engine is graphs, "),
        ({}, "holds no text encoder"),
    ],
)
def test_bad_loading_arguments(folder: Path, arguments: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        InfinityPipeline.from_pretrained(folder, **arguments)


def test_bfloat16_stays_close(folder: Path, pipe: InfinityPipeline) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("infinity.pipeline.load_text_encoder", lambda *_: LetterEncoder())
        half = InfinityPipeline.from_pretrained(
            folder, text_encoder="unused", device="cpu", dtype="bfloat16"
        )
    fp32: list[ScaleEnd] = []
    bf16: list[ScaleEnd] = []
    pipe("cat", seed=1, callback_on_scale_end=fp32.append)
    half("cat", seed=1, callback_on_scale_end=bf16.append)
    first, second = fp32[0].logits, bf16[0].logits
    assert first.dtype == second.dtype == torch.float32
    assert not torch.equal(first, second)
    assert (first - second).norm() / first.norm() < 2e-2


@pytest.mark.gpu
def test_pictures_decoded_together_are_those_decoded_alone(folder: Path) -> None:
    pipe = InfinityPipeline.from_pretrained(folder, encoder=LetterEncoder(), device="cuda")
    latents = torch.randn(5, 6, 32, 32, device="cuda")
    alone = torch.cat([pipe.decode_tensor(latent[None]) for latent in latents])
    torch.testing.assert_close(pipe.decode_tensor(latents), alone, atol=5e-2, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_second_gpu_draws_while_the_first_is_current(folder: Path) -> None:
    drawn = []
    for device in ("cuda:0", "cuda:1"):
        pipe = InfinityPipeline.from_pretrained(folder, encoder=LetterEncoder(), device=device)
        drawn += [pipe("cat", seed=1).latents.cpu() for _ in range(3)]
        assert torch.cuda.current_device() == 0
    assert all(torch.equal(latents, drawn[0]) for latents in drawn)
