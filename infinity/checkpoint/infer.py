"""Configurations read off the shapes of a checkpoint, and the published settings they belong to."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path

from infinity.checkpoint.lazy import Shape
from infinity.checkpoint.rules import chunk_sizes, flat_transformer_keys, wrapped_tokenizer_keys
from infinity.config import (
    PRESETS,
    ModelConfig,
    TextEncoderConfig,
    TokenizerConfig,
    TransformerConfig,
)
from infinity.errors import UserError

_log = logging.getLogger(__name__)

TOKENIZER_FILES = {
    "infinity-125m": "infinity_vae_d16.pth",
    "infinity-2b": "infinity_vae_d32reg.pth (also called infinity_vae_d32_reg.pth)",
    "infinity-8b": "infinity_vae_d56_f8_14_patchify.pth",
    "infinity-8b-512": "infinity_vae_d56_f8_14_patchify.pth",
}
"""The tokenizer file that each released transformer was trained with."""

_STRUCTURE = ("depth", "width", "heads", "text_width", "token_bits")


def _require(shapes: Mapping[str, Shape], key: str, axes: int, path: Path, what: str) -> Shape:
    shape = shapes.get(key)
    if shape is None or len(shape) != axes:
        found = "no tensor" if shape is None else f"shape {list(shape)} of"
        raise UserError(f"{path}: not {what} checkpoint: {found} {key}")
    return shape


def infer_tokenizer(stored: Mapping[str, Shape], path: Path) -> TokenizerConfig:
    """The tokenizer that has these tensors.

    Raises:
        UserError: they are not a tokenizer's.
    """
    names = wrapped_tokenizer_keys(stored)
    shapes = {names[key] or key: shape for key, shape in stored.items()}
    what = "a tokenizer"
    channels = _require(shapes, "encoder.conv_in.conv.weight", 4, path, what)[0]
    bits = _require(shapes, "encoder.conv_out.conv.weight", 4, path, what)[0]
    levels = 1 + max(
        (int(k.split(".")[2]) for k in shapes if k.startswith("encoder.down.")), default=-1
    )
    multipliers = []
    for level in range(levels):
        key = f"encoder.down.{level}.block.0.conv2.conv.weight"
        width = _require(shapes, key, 4, path, what)[0]
        if not channels or width % channels:
            raise UserError(f"{path}: width {width} of {key} is no multiple of {channels}")
        multipliers.append(width // channels)
    gains = shapes.get("quantizer.scale_gains", (0,))
    try:
        return TokenizerConfig(
            codebook_dim=bits,
            patch_size=2 ** _count(shapes, "encoder.down.{}.downsample.conv.conv.weight"),
            channels=channels,
            channel_multipliers=tuple(multipliers),
            res_blocks=_count(shapes, "encoder.down.0.block.{}.conv1.conv.weight"),
            scale_gains=gains[0],
        )
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def _count(shapes: Mapping[str, Shape], pattern: str) -> int:
    return sum(pattern.format(index) in shapes for index in range(len(shapes)))


def infer_transformer(
    stored: Mapping[str, Shape], path: Path, tokenizer: TokenizerConfig, tokenizer_path: Path
) -> TransformerConfig:
    """The transformer that has these tensors and works on the bits of ``tokenizer``.

    Raises:
        UserError: they are not a transformer's, or the tokenizer has other bits; then the right
            tokenizer file is named.
    """
    names = flat_transformer_keys(stored)
    shapes = {name: stored[key] for key, name in names.items() if name is not None}
    what = "an Infinity transformer"
    width, token_bits = _require(shapes, "word_embed.weight", 2, path, what)
    text_width = _require(shapes, "text_proj_for_ca.0.weight", 2, path, what)[1]
    text_tokens = _require(shapes, "cfg_uncond", 2, path, what)[0]
    scales = _require(shapes, "blocks.0.sa.scale_mul_1H11", 4, path, what)
    ffn_width = _require(shapes, "blocks.0.ffn.fc1.weight", 2, path, what)[0]
    sizes = chunk_sizes(stored)
    if len(set(sizes)) > 1:
        raise UserError(f"{path}: block chunks of unequal sizes {sizes}")
    fields = {
        "depth": sum(sizes),
        "width": width,
        "heads": max(scales),
        "text_width": text_width,
        "token_bits": token_bits,
    }
    patchify = token_bits == 4 * tokenizer.codebook_dim
    preset = _preset_of(fields)
    expected = PRESETS[preset].tokenizer if preset else None
    fits = patchify or token_bits == tokenizer.codebook_dim
    if not fits or (expected is not None and tokenizer != expected):
        right = f"; use {TOKENIZER_FILES[preset]}" if preset in TOKENIZER_FILES else ""
        raise UserError(
            f"{tokenizer_path}: this tokenizer ({tokenizer.codebook_dim} bits, stride "
            f"{tokenizer.patch_size}, width {tokenizer.channels}) does not belong to the "
            f"transformer {path} ({token_bits} bits per token){right}"
        )
    try:
        config = TransformerConfig(
            depth=sum(sizes),
            width=width,
            heads=max(scales),
            block_chunks=len(sizes),
            codebook_dim=tokenizer.codebook_dim,
            patchify=patchify,
            text_width=text_width,
            text_max_tokens=text_tokens,
            mlp_ratio=4.0,
        )
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    if config.ffn_width != ffn_width:
        config = dataclasses.replace(config, mlp_ratio=ffn_width / width)
    return config


def _preset_of(fields: Mapping[str, int]) -> str | None:
    for name, preset in PRESETS.items():
        if all(getattr(preset.transformer, field) == fields[field] for field in _STRUCTURE):
            return name
    return None


def infer_model(
    transformer: TransformerConfig,
    transformer_path: Path,
    tokenizer: TokenizerConfig,
    tokenizer_path: Path,
    name: str | None,
) -> ModelConfig:
    """The model of a fitting pair, with the published settings if it is a released one.

    8B and 8B-512 have equal shapes: ``name`` decides, else a "512" in the transformer's path.

    Raises:
        UserError: ``name`` is a released model of another shape.
    """
    fields = {field: getattr(transformer, field) for field in _STRUCTURE}
    preset = name if name in PRESETS else _preset_of(fields)
    if preset == "infinity-8b" and name != preset and "512" in str(transformer_path):
        preset = "infinity-8b-512"
    if preset is None:
        _log.warning(
            "%s: no released model has this shape; assuming 1M resolution and general sampling "
            "settings",
            transformer_path,
        )
        text = TextEncoderConfig(
            kind="minilm" if transformer.text_width == 384 else "t5",
            width=transformer.text_width,
            max_tokens=transformer.text_max_tokens,
        )
        return ModelConfig(
            name=name or transformer_path.stem,
            resolution="1M",
            transformer=transformer,
            tokenizer=tokenizer,
            text_encoder=text,
        )
    base = PRESETS[preset]
    wanted = {field: getattr(base.transformer, field) for field in _STRUCTURE}
    if wrong := [
        f"{f} {fields[f]} instead of {wanted[f]}" for f in _STRUCTURE if fields[f] != wanted[f]
    ]:
        raise UserError(f"{transformer_path}: is not {preset}: {', '.join(wrong)}")
    if preset == "infinity-2b" and "reg" not in tokenizer_path.name:
        _log.warning(
            "%s: infinity-2b needs the regularised tokenizer infinity_vae_d32reg.pth, which has "
            "the same shapes as the plain one; make sure that this file is it",
            tokenizer_path,
        )
    transformer = dataclasses.replace(
        transformer,
        norm_eps=base.transformer.norm_eps,
        rope_reference=base.transformer.rope_reference,
    )
    return dataclasses.replace(
        base, name=name or base.name, transformer=transformer, tokenizer=tokenizer
    )
