"""Which stored key fills which parameter: the wire format and its tolerated variants."""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from infinity.checkpoint.lazy import Shape
from infinity.errors import UserError

logger = logging.getLogger(__name__)

_DROPPED = {
    "lvl_1L",
    "attn_bias_for_masking",
    "Infinity_visible_kvlen",
    "Infinity_invisible_qlen",
}
_CHUNKED = re.compile(r"block_chunks\.(\d{1,3})\.module\.(\d{1,3})\.(.+)")
_FLAT = re.compile(r"blocks\.(\d{1,3})\.(.+)")
_UNWRAPPED = re.compile(
    r"(.*\.(?:conv_in|conv_out|conv1|conv2|nin_shortcut|(?:down|up)sample\.conv))\.(weight|bias)"
)
_UNWRAPPED_NORM = re.compile(r"(.*\.(?:norm1|norm2|norm_out))\.(weight|bias)")


@dataclass(frozen=True, kw_only=True)
class KeyRules:
    """How stored keys relate to a module's.

    Attributes:
        rename: stored keys → canonical keys; a key that maps to ``None`` is dropped silently.
        ignored: canonical keys that may be there and are not wanted; they are logged.
        optional: canonical keys that may be missing and are then zero.
        reshaped: whether a stored shape may be viewed as the wanted one.
    """

    rename: Callable[[Iterable[str]], dict[str, str | None]]
    ignored: Callable[[str], bool] = lambda key: False
    optional: Callable[[str], bool] = lambda key: False
    reshaped: Callable[[str, Shape, Shape], bool] = lambda key, stored, wanted: False


def chunk_sizes(keys: Iterable[str]) -> list[int]:
    """Blocks in each chunk that ``keys`` name; unchunked blocks count as one chunk.

    A block of which there are a few stray keys alone counts as none.
    """
    found: Counter[tuple[int, int]] = Counter()
    for key in keys:
        if match := _CHUNKED.fullmatch(key):
            found[int(match[1]), int(match[2])] += 1
        elif match := _FLAT.fullmatch(key):
            found[0, int(match[1])] += 1
    fullest = max(found.values(), default=0)
    chunks: dict[int, int] = {}
    for (chunk, block), count in found.items():
        if 3 * count > fullest:
            chunks[chunk] = max(chunks.get(chunk, 0), block + 1)
    return [chunks.get(chunk, 0) for chunk in range(max(chunks, default=-1) + 1)]


def flat_transformer_keys(keys: Iterable[str]) -> dict[str, str | None]:
    """Transformer keys with blocks numbered through (``blocks.{i}.``), leftovers as None.

    All chunks have as many blocks as the largest; those that a chunk lacks are missing.
    """
    keys = list(keys)
    size = max(chunk_sizes(keys), default=0)
    names: dict[str, str | None] = {}
    for key in keys:
        if key in _DROPPED or key.endswith("ln_wo_grad.weight"):
            names[key] = None
        elif match := _CHUNKED.fullmatch(key):
            names[key] = f"blocks.{int(match[1]) * size + int(match[2])}.{match[3]}"
        else:
            names[key] = key
    return names


def wrapped_tokenizer_keys(keys: Iterable[str]) -> dict[str, str | None]:
    """Tokenizer keys with the ``conv`` and ``norm`` segments that older files lack."""
    names: dict[str, str | None] = {}
    for key in keys:
        if match := _UNWRAPPED.fullmatch(key):
            names[key] = f"{match[1]}.conv.{match[2]}"
        elif match := _UNWRAPPED_NORM.fullmatch(key):
            names[key] = f"{match[1]}.norm.{match[2]}"
        else:
            names[key] = key
    return names


def _transformer_reshape(key: str, stored: Shape, wanted: Shape) -> bool:
    if key.endswith("scale_mul_1H11"):
        return stored == (1, 1, wanted[1], 1)
    return key == "cfg_uncond" and len(stored) == 2 and stored[1:] == wanted[1:]


TRANSFORMER = KeyRules(
    rename=flat_transformer_keys,
    optional=lambda key: key.endswith("zero_k_bias"),
    reshaped=_transformer_reshape,
)
TOKENIZER = KeyRules(
    rename=wrapped_tokenizer_keys,
    ignored=lambda key: not key.startswith(("encoder.", "decoder.", "quantizer.scale_gains")),
)
PLAIN = KeyRules(rename=lambda keys: {key: key for key in keys})


def rules_for(keys: Iterable[str]) -> KeyRules:
    """The rules of the kind of module that has these keys."""
    keys = set(keys)
    if "word_embed.weight" in keys:
        return TRANSFORMER
    return TOKENIZER if "decoder.conv_in.conv.weight" in keys else PLAIN


def match_keys(
    stored: Mapping[str, Shape], wanted: Mapping[str, Shape], context: str
) -> dict[str, str]:
    """The stored key that fills each wanted one; optional wanted keys may be left out.

    Args:
        stored: shapes in the file.
        wanted: shapes of the module.
        context: file or folder, for messages.

    Raises:
        UserError: one sentence with all missing, unexpected, repeated and misshapen keys.
    """
    rules = rules_for(wanted)
    canonical = rules.rename(wanted)
    targets = {canonical[key] or key: key for key in wanted}
    sources: dict[str, str] = {}
    unexpected: list[str] = []
    misshapen: list[str] = []
    repeated: list[str] = []
    ignored: list[str] = []
    for key, name in rules.rename(stored).items():
        if name is None:
            continue
        if name not in targets:
            (ignored if rules.ignored(name) else unexpected).append(key)
            continue
        target, shape = targets[name], stored[key]
        if target in sources:
            repeated.append(f"{key} and {sources[target]}")
        elif shape != wanted[target] and not rules.reshaped(name, shape, wanted[target]):
            misshapen.append(f"{key} {list(shape)} instead of {list(wanted[target])}")
        sources[target] = key
    missing = [key for key in wanted if key not in sources and not rules.optional(key)]
    problems = [
        f"{len(keys)} {what}: {', '.join(sorted(keys))}"
        for what, keys in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("stored twice", repeated),
            ("misshapen", misshapen),
        )
        if keys
    ]
    if problems:
        raise UserError(f"{context}: tensors do not fit the model: {'; '.join(problems)}")
    if ignored:
        logger.info("%s: ignored %d tensors: %s", context, len(ignored), ", ".join(sorted(ignored)))
    return sources
