"""The embedded model's text encoder: all-MiniLM-L6-v2 token states from int8 shards."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Encoding, Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import BertProcessing
from torch import Tensor

from infinity.checkpoint.int8 import expand_state
from infinity.checkpoint.load import is_finite, refuse_broken
from infinity.errors import UserError
from infinity.io.strict_json import parse_json
from infinity.text.base import CutPrompts, TextFeatures
from infinity.text.graphs import PADDED, EncoderGraphs
from infinity.upload import upload

CONFIG_NAME = "config.json"
VOCABULARY_NAME = "vocab.txt"


class MiniLMEncoder:
    """Last hidden states of a BERT encoder, one row per token with [CLS] and [SEP].

    Implements :class:`infinity.text.base.TextEncoder`. Prompts longer than ``max_tokens`` are cut.

    Args:
        bert: transformers' ``BertModel`` without pooler, in evaluation mode.
        tokenizer: its word-piece tokenizer.
        max_tokens: rows per prompt at most, [CLS] and [SEP] included.
    """

    def __init__(self, bert: Any, tokenizer: Tokenizer, max_tokens: int) -> None:
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_tokens)
        self._bert = bert
        device = next(bert.parameters()).device
        recorded = device.type == "cuda" and max_tokens % PADDED == 0
        self._graphs = EncoderGraphs(self._masked, device) if recorded else None
        self._tokenizer = tokenizer
        self._cut = CutPrompts(max_tokens)
        self.max_tokens = max_tokens
        self.width: int = bert.config.hidden_size

    @classmethod
    def from_directory(cls, path: Path, device: torch.device | str = "cpu") -> "MiniLMEncoder":
        """The encoder stored by :mod:`infinity.training.text_encoder`; reads local files only.

        Raises:
            UserError: a file is missing or unreadable, or the weights do not fit the config or are
                not finite.
        """
        config = _read_config(path / CONFIG_NAME)
        bert = build_bert(config["bert"])
        state = expand_state(_read_shards(path, config["shards"]))
        try:
            bert.load_state_dict(state, strict=True, assign=True)
        except RuntimeError as error:
            raise UserError(
                f"{path}: the text encoder's weights do not fit {CONFIG_NAME}: "
                f"{' '.join(str(error).split())}"
            ) from error
        refuse_broken([key for key, value in state.items() if not is_finite(value)], str(path))
        tokenizer = word_piece_tokenizer(_read_vocabulary(path / VOCABULARY_NAME))
        bert.requires_grad_(False)
        return cls(bert.to(device), tokenizer, config["bert"]["max_position_embeddings"])

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        """Features of each prompt computed alone, so that they never depend on its neighbours."""
        return TextFeatures.stack([self._encode_one(prompt) for prompt in prompts])

    def _encode_one(self, prompt: str) -> Float[Tensor, "n width"]:
        encoding = self._tokenizer.encode(prompt)
        if encoding.overflowing:
            self._cut.tell(prompt)
        if self._graphs is not None:
            return self._graphs(encoding.ids)
        return self._states([encoding])[0]

    def _masked(self, ids: Tensor, mask: Tensor) -> Tensor:
        states: Tensor = self._bert(input_ids=ids, attention_mask=mask).last_hidden_state
        return states

    @torch.no_grad()
    def encode_batch(self, prompts: Sequence[str]) -> TextFeatures:
        """Like :meth:`encode` in one padded pass: fast, equal up to rounding; for training."""
        encodings = self._tokenizer.encode_batch(list(prompts))
        states = self._states(encodings)
        lengths = tuple(len(encoding.ids) for encoding in encodings)
        longest = states.shape[1]
        index = [row * longest + i for row, n in enumerate(lengths) for i in range(n)]
        rows = upload(torch.tensor(index), states.device)
        return TextFeatures(states.flatten(0, 1)[rows], lengths)

    def _states(self, encodings: Sequence[Encoding]) -> Float[Tensor, "b longest width"]:
        longest = max(len(encoding.ids) for encoding in encodings)
        ids = [encoding.ids + [0] * (longest - len(encoding.ids)) for encoding in encodings]
        alone = len(encodings) == 1
        mask = [[i < len(encoding.ids) for i in range(longest)] for encoding in encodings]
        device = next(self._bert.parameters()).device
        hidden: Tensor = self._bert(
            input_ids=upload(torch.tensor(ids), device),
            attention_mask=None if alone else upload(torch.tensor(mask), device),
        ).last_hidden_state
        return hidden.float()


def build_bert(config: dict[str, Any]) -> Any:
    """A ``BertModel`` without weights, ready for ``load_state_dict(assign=True)``.

    Args:
        config: fields of transformers' ``BertConfig``.
    """
    from transformers.models.bert.configuration_bert import BertConfig
    from transformers.models.bert.modeling_bert import BertModel

    bert_config = BertConfig(**config, attn_implementation="sdpa")
    with torch.device("meta"):
        bert = BertModel(bert_config, add_pooling_layer=False).eval()
    positions = torch.arange(bert_config.max_position_embeddings)[None]
    bert.embeddings.position_ids = positions
    bert.embeddings.token_type_ids = torch.zeros_like(positions)
    return bert


def word_piece_tokenizer(pieces: Sequence[str]) -> Tokenizer:
    """The uncased BERT tokenizer over ``pieces``; a piece's index is its id.

    Raises:
        UserError: a special piece is missing.
    """
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    missing = [piece for piece in ("[UNK]", "[CLS]", "[SEP]") if piece not in vocabulary]
    if missing:
        raise UserError(f"{VOCABULARY_NAME}: lacks the pieces {', '.join(missing)}.")
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = BertProcessing(
        ("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"])
    )
    return tokenizer


def _read_vocabulary(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split("\n")[:-1]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable vocabulary: {error}.") from error


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"))
        valid = isinstance(config["bert"], dict) and isinstance(config["shards"], list)
    except OSError as error:
        raise UserError(
            f"{path}: cannot read the text encoder's config: {error.strerror}."
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not a text encoder config ({error!r}).") from error
    if not valid:
        raise UserError(f"{path}: 'bert' must be a mapping and 'shards' a list of file names.")
    return config


def _read_shards(folder: Path, names: Sequence[str]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name in names:
        path = folder / Path(name).name
        if not path.is_file():
            raise UserError(f"{path}: this shard of the text encoder is missing.")
        try:
            state |= load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path}: not a readable safetensors file: {error}.") from error
    return state
