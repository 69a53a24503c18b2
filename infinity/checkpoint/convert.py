"""Official files in, model directory out."""

from pathlib import Path

import torch
from torch import nn

from infinity.checkpoint.directory import official_digest
from infinity.checkpoint.lazy import LazyState
from infinity.checkpoint.load import shapes_of_module
from infinity.checkpoint.official import open_official
from infinity.checkpoint.rules import match_keys
from infinity.checkpoint.writer import check_places, save_model_directory
from infinity.config import ModelConfig
from infinity.errors import Mistakes, collecting
from infinity.tokenizer.autoencoder import BSQTokenizer
from infinity.transformer.model import InfinityTransformer


def convert(
    transformer: Path,
    tokenizer: Path,
    output: Path,
    *,
    name: str | None = None,
    text_encoder: Path | None = None,
    dtype: torch.dtype | None = None,
) -> ModelConfig:
    """Writes the model directory of a released pair of files and returns its configuration.

    Args:
        transformer: see :func:`infinity.checkpoint.official.open_official`.
        tokenizer: likewise.
        output: the new folder.
        name: name of the model; a preset's name fixes which released model it must be.
        text_encoder: a local ``transformers`` folder to include.
        dtype: dtype of the transformer's block matrices; as stored if None.

    Raises:
        Mistakes: unreadable or unsafe files, tensors that do not fit, a tokenizer of another
            model, an output folder that is in the way, and no usable text encoder.
    """
    found: list[str] = []
    with collecting(found):
        check_places(output, text_encoder)
    with collecting(found):
        model = open_official(transformer, tokenizer, name=name)
    if found:
        raise Mistakes(found)
    with torch.device("meta"):
        modules = (
            InfinityTransformer(model.config.transformer),
            BSQTokenizer(model.config.tokenizer),
        )
    save_model_directory(
        output,
        model.config,
        _fitted(model.transformer, modules[0], str(transformer)),
        _fitted(model.tokenizer, modules[1], str(tokenizer)),
        dtype=dtype,
        text_encoder_dir=text_encoder,
        source={"transformer": transformer.name, "tokenizer": tokenizer.name},
        source_digest=official_digest(transformer, tokenizer, model.config)
        if dtype is None
        else None,
    )
    return model.config


def _fitted(state: LazyState, module: nn.Module, context: str) -> LazyState:
    return state.renamed(match_keys(state.shapes, shapes_of_module(module), context))
