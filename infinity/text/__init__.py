"""Text encoders behind one protocol."""

from pathlib import Path

import torch

from infinity.config import TextEncoderConfig
from infinity.errors import UserError
from infinity.text.base import TextEncoder, TextFeatures

__all__ = ["TextEncoder", "TextFeatures", "load_text_encoder"]


def load_text_encoder(
    config: TextEncoderConfig, folder: Path, device: torch.device, dtype: torch.dtype
) -> TextEncoder:
    """The encoder that ``config`` names, from a local folder.

    Raises:
        UserError: the folder does not hold that encoder, or its width differs from the model's.
    """
    encoder: TextEncoder
    if config.kind == "minilm":
        from infinity.text.minilm import MiniLMEncoder

        encoder = MiniLMEncoder.from_directory(folder, device=str(device))
    else:
        from infinity.text.t5 import T5Encoder

        encoder = T5Encoder.from_directory(
            folder, max_tokens=config.max_tokens, device=device, dtype=dtype
        )
    if encoder.width != config.width:
        raise UserError(
            f"text encoder {folder} gives features of width {encoder.width}, "
            f"but the model was trained on width {config.width}"
        )
    return encoder
