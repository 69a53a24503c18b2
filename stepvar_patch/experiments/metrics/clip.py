"""CLIP embeddings of pictures and texts, from a local folder or OpenCLIP weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from infinity.errors import UserError
from stepvar_patch.experiments.metrics.weights import load_strictly

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


class Clip:
    """A CLIP model and its tokenizer; embeddings have unit length.

    Args:
        model: of transformers, on its device.
        tokenizer: likewise.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model, self._tokenizer = model.eval().requires_grad_(False), tokenizer
        self._side = int(model.config.vision_config.image_size)
        self._longest = int(model.config.text_config.max_position_embeddings)

    @classmethod
    def load(cls, folder: str | Path, device: str) -> "Clip":
        """The model in a folder of the transformers layout.

        Raises:
            UserError: the folder holds something else, or weights that would have to be unpickled.
        """
        from transformers import CLIPModel

        model = from_folder(CLIPModel, folder, "a CLIP model")
        return cls(model.to(device), load_tokenizer(folder))

    @torch.inference_mode()
    def images(self, images: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, "b e"]:
        """Embeddings of sRGB pictures, scaled by the shorter side and cut to their centre."""
        x = centre_square(images, self._side)
        return F.normalize(self._model.get_image_features(pixel_values=x).pooler_output, dim=-1)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Float[Tensor, "b e"]:
        """Embeddings of texts, cut at the model's longest."""
        tokens = self._tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self._longest,
            return_tensors="pt",
        )
        ids = tokens["input_ids"].to(self._model.device)
        mask = tokens["attention_mask"].to(self._model.device)
        found = self._model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
        return F.normalize(found, dim=-1)


def centre_square(images: UInt8[Tensor, "b h w 3"], side: int) -> Float[Tensor, "b 3 side side"]:
    """Normalised pictures as CLIP takes them: bicubic, antialiased, rounded to whole levels."""
    height, width = images.shape[1:3]
    scale = side / min(height, width)
    size = (max(side, round(height * scale)), max(side, round(width * scale)))
    x = images.permute(0, 3, 1, 2).float()
    x = F.interpolate(x, size=size, mode="bicubic", antialias=True).round().clamp(0, 255) / 255
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    x = x[:, :, top : top + side, left : left + side]
    mean, std = (x.new_tensor(values).view(1, 3, 1, 1) for values in (_MEAN, _STD))
    return (x - mean) / std


def from_folder(kind: Any, folder: str | Path, what: str) -> Any:
    """A transformers model from a local folder; nothing is fetched or unpickled unsafely.

    Raises:
        UserError: the folder does not hold such a model.
    """
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of {what}, transformers layout")
    try:
        return kind.from_pretrained(
            str(folder), local_files_only=True, weights_only=True, dtype=torch.float32
        )
    except Exception as error:  # transformers raises many kinds for a wrong folder
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{folder}: not the folder of {what} ({reason})") from error


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer in a local folder.

    Raises:
        UserError: there is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{folder}: holds no tokenizer ({reason})") from error


def from_open_clip(
    state: Mapping[str, Tensor],
    path: str | Path,
    *,
    vision_heads: int,
    text_heads: int,
) -> Any:
    """A transformers CLIP model with the weights of an OpenCLIP state dict.

    Args:
        state: under OpenCLIP's names.
        path: names the file in sentences.
        vision_heads: attention heads, which the shapes do not tell.
        text_heads: likewise.

    Raises:
        UserError: the tensors are not those of a CLIP model.
    """
    from transformers import CLIPConfig, CLIPModel

    try:
        patch = state["visual.conv1.weight"]
        vision, text = patch.shape[0], state["ln_final.weight"].shape[0]
        grid = round((state["visual.positional_embedding"].shape[0] - 1) ** 0.5)
        vocabulary, longest = (
            state["token_embedding.weight"].shape[0],
            state["positional_embedding"].shape[0],
        )
        sizes: dict[str, Any] = {
            "vision_config": {
                "hidden_size": vision,
                "intermediate_size": _feed_forward(state, "visual."),
                "num_hidden_layers": _depth(state, "visual."),
                "num_attention_heads": vision_heads,
                "image_size": grid * patch.shape[-1],
                "patch_size": patch.shape[-1],
                "hidden_act": "gelu",
            },
            "text_config": {
                "hidden_size": text,
                "intermediate_size": _feed_forward(state, ""),
                "num_hidden_layers": _depth(state, ""),
                "num_attention_heads": text_heads,
                "vocab_size": vocabulary,
                "max_position_embeddings": longest,
                "hidden_act": "gelu",
                "eos_token_id": vocabulary - 1,
                "bos_token_id": vocabulary - 2,
            },
            "projection_dim": state["text_projection"].shape[1],
        }
    except (KeyError, IndexError) as error:
        raise UserError(f"{path}: not the weights of an OpenCLIP model ({error})") from error
    model = CLIPModel(CLIPConfig(**sizes))
    load_strictly(model, _renamed(state), path, ignore=("position_ids",))
    return model


def _depth(state: Mapping[str, Tensor], side: str) -> int:
    start = f"{side}transformer.resblocks."
    return 1 + max(int(key[len(start) :].split(".")[0]) for key in state if key.startswith(start))


def _feed_forward(state: Mapping[str, Tensor], side: str) -> int:
    return int(state[f"{side}transformer.resblocks.0.mlp.c_fc.weight"].shape[0])


_NAMES = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
}
_NORMS = {
    "ln_final": "text_model.final_layer_norm",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
}
_PARTS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    out = {}
    for key, value in state.items():
        value = value.float()
        stem, _, ending = key.rpartition(".")
        if key in _NAMES:
            out[_NAMES[key]] = value
        elif stem in _NORMS:
            out[f"{_NORMS[stem]}.{ending}"] = value
        elif key == "text_projection":
            out["text_projection.weight"] = value.T.contiguous()
        elif key == "visual.proj":
            out["visual_projection.weight"] = value.T.contiguous()
        elif "transformer.resblocks." in key:
            side, _, rest = key.partition("transformer.resblocks.")
            index, _, part = rest.partition(".")
            layer = f"{'vision' if side else 'text'}_model.encoder.layers.{index}"
            if part.startswith("attn.in_proj_"):
                name = part.removeprefix("attn.in_proj_")
                for letter, third in zip("qkv", value.chunk(3), strict=True):
                    out[f"{layer}.self_attn.{letter}_proj.{name}"] = third
            else:
                block, _, name = part.rpartition(".")
                out[f"{layer}.{_PARTS.get(block, block)}.{name}"] = value
        else:
            out[key] = value
    return out
