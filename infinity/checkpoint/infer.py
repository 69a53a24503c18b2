"""Configurations read off the shapes of a checkpoint, and the published settings they belong to."""

import dataclasses
import logging
import re
from collections.abc import Mapping
from pathlib import Path

from infinity.checkpoint.lazy import Shape
from infinity.checkpoint.sizes import MissingSizeError, tokenizer_sizes, transformer_sizes
from infinity.config import (
    PRESETS,
    ModelConfig,
    TextEncoderConfig,
    TokenizerConfig,
    TransformerConfig,
)
from infinity.errors import UserError

logger = logging.getLogger(__name__)

TOKENIZER_FILES = {
    "infinity-125m": "infinity_vae_d16.pth",
    "infinity-2b": "infinity_vae_d32reg.pth (also called infinity_vae_d32_reg.pth)",
    "infinity-8b": "infinity_vae_d56_f8_14_patchify.pth",
    "infinity-8b-512": "infinity_vae_d56_f8_14_patchify.pth",
}
"""The tokenizer file that each released transformer was trained with."""

_STRUCTURE = ("depth", "width", "heads", "text_width", "token_bits")
_NAMED_512 = re.compile(r"(?<!\d)512x512(?!\d)|8b[-_]512(?!\d)", re.IGNORECASE)


def infer_tokenizer(stored: Mapping[str, Shape], path: Path) -> TokenizerConfig:
    """The tokenizer that has these tensors.

    Raises:
        UserError: they are not a tokenizer's.
    """
    try:
        sizes = tokenizer_sizes(stored)
    except MissingSizeError as error:
        raise UserError(f"{path}: not a tokenizer checkpoint: {error}") from error
    odd = [width for width in sizes.level_widths if width % sizes.channels]
    if odd:
        raise UserError(f"{path}: its width {odd[0]} is no multiple of {sizes.channels}")
    try:
        return TokenizerConfig(
            codebook_dim=sizes.bits,
            patch_size=2**sizes.halvings,
            channels=sizes.channels,
            channel_multipliers=tuple(width // sizes.channels for width in sizes.level_widths),
            res_blocks=sizes.res_blocks,
            scale_gains=sizes.scale_gains,
        )
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def infer_transformer(stored: Mapping[str, Shape], path: Path) -> TransformerConfig:
    """The transformer that has these tensors, on a tokenizer of as many bits as its tokens have.

    Raises:
        UserError: they are not a transformer's.
    """
    try:
        sizes = transformer_sizes(stored)
    except MissingSizeError as error:
        raise UserError(f"{path}: not an Infinity transformer checkpoint: {error}") from error
    try:
        config = TransformerConfig(
            depth=sizes.depth,
            width=sizes.width,
            heads=sizes.heads,
            block_chunks=sizes.chunks,
            codebook_dim=sizes.token_bits,
            text_width=sizes.text_width,
            text_max_tokens=sizes.text_tokens,
            mlp_ratio=4.0,
        )
        if config.ffn_width != sizes.ffn_width:
            config = dataclasses.replace(config, mlp_ratio=sizes.ffn_width / sizes.width)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    return config


def paired(
    transformer: TransformerConfig,
    transformer_path: Path,
    tokenizer: TokenizerConfig,
    tokenizer_path: Path,
) -> TransformerConfig:
    """The transformer, working on the bits of ``tokenizer``.

    Raises:
        UserError: the tokenizer has other bits, or is not the one that a released transformer was
            trained with; then the right file is named.
    """
    token_bits = transformer.token_bits
    patchify = token_bits == 4 * tokenizer.codebook_dim
    preset = _preset_of({field: getattr(transformer, field) for field in _STRUCTURE})
    expected = PRESETS[preset].tokenizer if preset else None
    fits = patchify or token_bits == tokenizer.codebook_dim
    if not fits or (expected is not None and tokenizer != expected):
        right = f"; use {TOKENIZER_FILES[preset]}" if preset in TOKENIZER_FILES else ""
        raise UserError(
            f"{tokenizer_path}: this tokenizer ({tokenizer.codebook_dim} bits, stride "
            f"{tokenizer.patch_size}, width {tokenizer.channels}) does not belong to the "
            f"transformer {transformer_path} ({token_bits} bits per token){right}"
        )
    return dataclasses.replace(transformer, codebook_dim=tokenizer.codebook_dim, patchify=patchify)


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

    8B and 8B-512 have equal shapes: ``name`` decides, else whether the transformer's file or folder
    is called so, as the released ones are.

    Raises:
        UserError: ``name`` is a released model of another shape.
    """
    fields = {field: getattr(transformer, field) for field in _STRUCTURE}
    preset = name if name in PRESETS else _preset_of(fields)
    called = "/".join(transformer_path.parts[-2:])
    if preset == "infinity-8b" and name != preset and _NAMED_512.search(called):
        preset = "infinity-8b-512"
    if preset is None:
        logger.warning(
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
        logger.warning(
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
