"""Checkpoints: official files and model directories, read safely and strictly."""

from infinity.checkpoint.directory import (
    check_listed,
    digest,
    load_model_config,
    official_digest,
    read_state,
    source_digest,
    text_encoder_folder,
)
from infinity.checkpoint.load import load_into
from infinity.checkpoint.official import OfficialModel, open_official
from infinity.checkpoint.writer import save_model_directory

__all__ = [
    "OfficialModel",
    "check_listed",
    "digest",
    "load_into",
    "load_model_config",
    "official_digest",
    "open_official",
    "read_state",
    "save_model_directory",
    "source_digest",
    "text_encoder_folder",
]
