"""The numbers of a model read off its tensors, each off many, so that a wrong one is outvoted."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from infinity.checkpoint.lazy import Shape
from infinity.checkpoint.rules import chunk_sizes, flat_transformer_keys, wrapped_tokenizer_keys

_BLOCK = re.compile(r"blocks\.\d+\.(.+)")
_LEVEL = re.compile(r"(?:encoder\.down|decoder\.up)\.(\d{1,2})\.(.+)")
_RES_BLOCK = re.compile(r"encoder\.down\.(\d{1,2})\.block\.(\d{1,2})\.")

_Place = tuple[str, int, int, int]
"""A tensor, its number of axes, the axis that shows the number, and what it is multiplied by."""

_TRANSFORMER: dict[str, tuple[_Place, ...]] = {
    "width": (
        ("word_embed.weight", 2, 0, 1),
        ("head.weight", 2, 1, 1),
        ("pos_start", 3, 2, 1),
        ("lvl_embed.weight", 2, 1, 1),
        ("sa.proj.weight", 2, 0, 1),
        ("ffn.fc1.weight", 2, 1, 1),
        ("ffn.fc2.weight", 2, 0, 1),
    ),
    "token_bits": (
        ("word_embed.weight", 2, 1, 1),
        ("head.weight", 2, 0, 2),
        ("head.bias", 1, 0, 2),
    ),
    "text_width": (
        ("text_proj_for_ca.0.weight", 2, 1, 1),
        ("cfg_uncond", 2, 1, 1),
        ("text_norm.weight", 1, 0, 1),
        ("text_proj_for_sos.ca.mat_kv.weight", 2, 1, 1),
    ),
    "ffn_width": (
        ("ffn.fc1.weight", 2, 0, 1),
        ("ffn.fc1.bias", 1, 0, 1),
        ("ffn.fc2.weight", 2, 1, 1),
    ),
}
_HEADS = "sa.scale_mul_1H11"

_TOKENIZER: dict[str, tuple[_Place, ...]] = {
    "channels": (
        ("encoder.conv_in.conv.weight", 4, 0, 1),
        ("encoder.conv_in.conv.bias", 1, 0, 1),
        ("encoder.down.0.block.0.norm1.norm.weight", 1, 0, 1),
        ("encoder.down.0.block.0.conv1.conv.weight", 4, 1, 1),
    ),
    "bits": (
        ("encoder.conv_out.conv.weight", 4, 0, 1),
        ("encoder.conv_out.conv.bias", 1, 0, 1),
        ("decoder.conv_in.conv.weight", 4, 1, 1),
    ),
}
_LEVEL_WIDTH: tuple[_Place, ...] = (
    ("block.0.conv2.conv.weight", 4, 0, 1),
    ("block.0.conv2.conv.weight", 4, 1, 1),
    ("block.0.conv1.conv.weight", 4, 0, 1),
)


class MissingSizeError(ValueError):
    """No tensor shows a number; the message names the one that should first of all."""


@dataclass(frozen=True, kw_only=True)
class TransformerSizes:
    """What the tensors of a transformer say; see `infinity.config.TransformerConfig`."""

    chunks: int
    depth: int
    width: int
    heads: int
    token_bits: int
    text_width: int
    text_tokens: int
    ffn_width: int


@dataclass(frozen=True, kw_only=True)
class TokenizerSizes:
    """What the tensors of a tokenizer say; see `infinity.config.TokenizerConfig`."""

    bits: int
    channels: int
    level_widths: tuple[int, ...]
    res_blocks: int
    halvings: int
    scale_gains: int


def transformer_sizes(stored: Mapping[str, Shape]) -> TransformerSizes:
    """The numbers that most tensors of a transformer agree on.

    Args:
        stored: shapes by key, in any form of the wire format.

    Raises:
        MissingSizeError: too little of a transformer is there.
    """
    names = flat_transformer_keys(stored)
    shapes: dict[str, list[Shape]] = {}
    for key, name in names.items():
        if name is not None:
            inside = _BLOCK.fullmatch(name)
            shapes.setdefault(inside[1] if inside else name, []).append(stored[key])
    numbers = {name: _vote(shapes, places) for name, places in _TRANSFORMER.items()}
    chunks = chunk_sizes(stored)
    heads = _commonest(max(shape) for shape in shapes.get(_HEADS, ()) if len(shape) == 4)
    if heads is None:
        raise MissingSizeError(f"no tensor blocks.0.{_HEADS}")
    (table,) = shapes.get("cfg_uncond", [()])[:1]
    return TransformerSizes(
        chunks=len(chunks),
        depth=max(chunks) * len(chunks),
        heads=heads,
        text_tokens=table[0] if len(table) == 2 else 512,
        **numbers,
    )


def tokenizer_sizes(stored: Mapping[str, Shape]) -> TokenizerSizes:
    """The numbers that most tensors of a tokenizer agree on.

    Args:
        stored: shapes by key, in any form of the wire format.

    Raises:
        MissingSizeError: too little of a tokenizer is there.
    """
    names = wrapped_tokenizer_keys(stored)
    shapes = {names[key] or key: shape for key, shape in stored.items()}
    numbers = {
        name: _vote({key: [shape] for key, shape in shapes.items()}, places)
        for name, places in _TOKENIZER.items()
    }
    levels: dict[int, dict[str, list[Shape]]] = {}
    blocks: Counter[int] = Counter()
    for key, shape in shapes.items():
        if match := _LEVEL.fullmatch(key):
            levels.setdefault(int(match[1]), {}).setdefault(match[2], []).append(shape)
        if match := _RES_BLOCK.match(key):
            blocks[int(match[1])] = max(blocks[int(match[1])], 1 + int(match[2]))
    depth = 1 + max(levels, default=0)
    gains = shapes.get("quantizer.scale_gains", (0,))
    return TokenizerSizes(
        level_widths=tuple(_vote(levels.get(i, {}), _LEVEL_WIDTH) for i in range(depth)),
        res_blocks=_commonest(blocks.values()) or 0,
        halvings=_commonest(
            sum(f"{change.format(level)}.conv.conv.{part}" in shapes for level in levels)
            for change in ("encoder.down.{}.downsample", "decoder.up.{}.upsample")
            for part in ("weight", "bias")
        )
        or 0,
        scale_gains=gains[0] if len(gains) == 1 else 0,
        **numbers,
    )


def _vote(shapes: Mapping[str, Iterable[Shape]], places: Iterable[_Place]) -> int:
    """The number that most of the places show."""
    places = tuple(places)
    shown = (
        shape[axis] // times
        for key, axes, axis, times in places
        for shape in shapes.get(key, ())
        if len(shape) == axes
    )
    number = _commonest(number for number in shown if number > 0)
    if number is None:
        raise MissingSizeError(f"no tensor {places[0][0]}")
    return number


def _commonest(numbers: Iterable[int]) -> int | None:
    """The most frequent number, the earliest of those; None if there is none."""
    counted = Counter(numbers).most_common(1)
    return counted[0][0] if counted else None
