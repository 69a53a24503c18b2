"""A tiny model directory with random weights, small enough to draw in a fraction of a second."""

from pathlib import Path

import torch

from infinity.checkpoint import save_model_directory
from infinity.config import (
    ModelConfig,
    SamplingDefaults,
    TextEncoderConfig,
    TokenizerConfig,
    TransformerConfig,
)
from infinity.tokenizer.autoencoder import BSQTokenizer
from infinity.transformer.model import InfinityTransformer

REPOSITORY = Path(__file__).parents[2]
CONFIG = ModelConfig(
    name="tiny",
    resolution="0.06M",
    transformer=TransformerConfig(
        depth=2,
        width=96,
        heads=2,
        block_chunks=1,
        codebook_dim=6,
        text_width=384,
        text_max_tokens=64,
    ),
    tokenizer=TokenizerConfig(
        codebook_dim=6, patch_size=2, channels=32, channel_multipliers=(1, 1), res_blocks=1
    ),
    text_encoder=TextEncoderConfig(kind="minilm", width=384, max_tokens=64),
    sampling=SamplingDefaults(guidance_scale=2.0, temperature=1.0),
)


def write_tiny_model(folder: Path) -> InfinityTransformer:
    """Writes the model directory and gives its transformer."""
    torch.manual_seed(0)
    transformer, tokenizer = InfinityTransformer(CONFIG.transformer), BSQTokenizer(CONFIG.tokenizer)
    for parameter in (*transformer.parameters(), *tokenizer.parameters()):
        torch.nn.init.normal_(parameter, std=0.15)
    save_model_directory(
        folder,
        CONFIG,
        transformer.state_dict(),
        tokenizer.state_dict(),
        text_encoder_dir=REPOSITORY / "weights" / "text_encoder",
    )
    return transformer
