"""ImageReward, from its local checkpoint."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from infinity.errors import UserError
from stepvar_patch.experiments.metrics.clip import centre_square, load_tokenizer
from stepvar_patch.experiments.metrics.weights import load_strictly, read_tensors

_MEAN, _STD = 0.16717362830052426, 1.0333394966054072
"""Of the raw rewards on the authors' data, which standardise the score."""

_TEXT_TOKENS = 35
_HIDDEN = (1024, 128, 64, 16, 1)
_VISION_HEADS, _TEXT_HEADS = 16, 12
_VISION = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj": "embeddings.patch_embedding",
    "norm": "post_layernorm",
}
_VISION_PARTS = {
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


class ImageReward:
    """Standardised human preference for a picture, given its prompt.

    Args:
        checkpoint: ``ImageReward.pt``.
        tokenizer: folder of a ``bert-base-uncased`` tokenizer.
        device: where it runs.

    Raises:
        UserError: the checkpoint is unreadable, unsafe or of another network.

    Source: Xu et al. 2023, sec. 3.1: BLIP (ViT-L, BERT with cross-attention), then five linear
    layers on the first text state.
    """

    def __init__(self, checkpoint: str | Path, tokenizer: str | Path, device: str) -> None:
        state = read_tensors(checkpoint)
        self._vision, self._text, self._head = build(
            state, checkpoint, vision_heads=_VISION_HEADS, text_heads=_TEXT_HEADS
        )
        for module in (self._vision, self._text, self._head):
            module.to(device).eval().requires_grad_(False)
        self._tokenizer, self._device = load_tokenizer(tokenizer), device

    @torch.inference_mode()
    def __call__(
        self, images: UInt8[Tensor, "b h w 3"], prompts: Sequence[str]
    ) -> Float[Tensor, " b"]:
        """One score per picture; higher is better, 0 is the average of the authors' data."""
        tokens = self._tokenizer(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=_TEXT_TOKENS,
            return_tensors="pt",
        )
        side = int(self._vision.config.image_size)
        seen = self._vision(pixel_values=centre_square(images, side)).last_hidden_state
        read = self._text(
            input_ids=tokens["input_ids"].to(self._device),
            attention_mask=tokens["attention_mask"].to(self._device),
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], device=seen.device),
            is_decoder=False,
            use_cache=False,
        ).last_hidden_state[:, 0]
        rewards: Tensor = self._head(read)[:, 0]
        return (rewards - _MEAN) / _STD


def build(
    state: Mapping[str, Tensor],
    path: str | Path,
    *,
    vision_heads: int,
    text_heads: int,
) -> tuple[Any, Any, nn.Sequential]:
    """Vision tower, text tower and head with the checkpoint's weights.

    Args:
        state: under the authors' names.
        path: names the file in sentences.
        vision_heads: attention heads, which the shapes do not tell.
        text_heads: likewise.

    Raises:
        UserError: the tensors are not those of ImageReward.
    """
    from transformers import BlipTextConfig, BlipVisionConfig
    from transformers.models.blip.modeling_blip import BlipVisionModel
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    seen, read = (_part(state, f"blip.{name}.") for name in ("visual_encoder", "text_encoder"))
    try:
        patch = seen["patch_embed.proj.weight"]
        grid = round((seen["pos_embed"].shape[1] - 1) ** 0.5)
        words = read["embeddings.word_embeddings.weight"]
        vision = BlipVisionModel(
            BlipVisionConfig(
                hidden_size=patch.shape[0],
                intermediate_size=seen["blocks.0.mlp.fc1.weight"].shape[0],
                num_hidden_layers=_depth(seen, "blocks."),
                num_attention_heads=vision_heads,
                image_size=grid * patch.shape[-1],
                patch_size=patch.shape[-1],
                layer_norm_eps=1e-6,
            )
        )
        text = BlipTextModel(
            BlipTextConfig(
                vocab_size=words.shape[0],
                hidden_size=words.shape[1],
                encoder_hidden_size=patch.shape[0],
                intermediate_size=read["encoder.layer.0.intermediate.dense.weight"].shape[0],
                num_hidden_layers=_depth(read, "encoder.layer."),
                num_attention_heads=text_heads,
                max_position_embeddings=read["embeddings.position_embeddings.weight"].shape[0],
                is_decoder=True,  # builds the cross-attention; the call below sees both ways
            ),
            add_pooling_layer=False,
        )
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"{path}: not the weights of ImageReward ({error})") from error
    widths = (words.shape[1], *_HIDDEN)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.Dropout(0.0)]
    head = nn.Sequential(*layers[:-1])
    load_strictly(vision, dict(map(_vision_key, seen.items())), path)
    load_strictly(text, read, path, ignore=("position_ids",))
    load_strictly(head, _part(state, "mlp.layers."), path)
    return vision, text, head


def _part(state: Mapping[str, Tensor], start: str) -> dict[str, Tensor]:
    return {k[len(start) :]: v.float() for k, v in state.items() if k.startswith(start)}


def _depth(state: Mapping[str, Tensor], start: str) -> int:
    return 1 + max(int(key[len(start) :].split(".")[0]) for key in state if key.startswith(start))


def _vision_key(item: tuple[str, Tensor]) -> tuple[str, Tensor]:
    key, value = item
    stem, _, ending = key.rpartition(".")
    if key in _VISION:
        return _VISION[key], value
    if stem in _VISION:
        return f"{_VISION[stem]}.{ending}", value
    if key.startswith("blocks."):
        _, index, rest = key.split(".", 2)
        part, _, ending = rest.rpartition(".")
        return f"encoder.layers.{index}.{_VISION_PARTS.get(part, part)}.{ending}", value
    return key, value
