"""Pictures of prompts by a transformer under training, through the pipeline that will serve it."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from infinity.config import ModelConfig, TextEncoderConfig, TokenizerConfig
from infinity.pipeline import InfinityPipeline
from infinity.text import TextEncoder
from infinity.tokenizer.autoencoder import BSQTokenizer
from infinity.training.config import TrainTransformerConfig
from infinity.transformer.model import InfinityTransformer

SAMPLED_SCALES = 3
"""Leading scales drawn at temperature 1; it falls to nearly greedy over the others."""


def training_model_config(
    config: TrainTransformerConfig, tokenizer: TokenizerConfig
) -> ModelConfig:
    """The model that a run trains, with its text encoder and the tokenizer it is trained on.

    Args:
        config: of the run.
        tokenizer: as its checkpoint says.

    Raises:
        ValueError: transformer and tokenizer do not fit.
    """
    return ModelConfig(
        name="training",
        resolution=config.resolution,
        transformer=config.model,
        tokenizer=tokenizer,
        text_encoder=TextEncoderConfig(
            kind="minilm",
            width=config.model.text_width,
            max_tokens=config.model.text_max_tokens,
        ),
    )


def training_pipeline(
    config: ModelConfig,
    transformer: InfinityTransformer,
    tokenizer: BSQTokenizer,
    text_encoder: TextEncoder,
    device: torch.device,
) -> InfinityPipeline:
    """A pipeline of the very modules that are being trained, fp32.

    Args:
        config: of the model.
        transformer, tokenizer, text_encoder: its parts, on ``device``.
        device: to draw on.
    """
    return InfinityPipeline(
        config=config,
        transformer=transformer,
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        digest="training",
        device=device,
        dtype=torch.float32,
        max_batch_size=8,
    )


def draw_prompts(
    pipeline: InfinityPipeline, prompts: Sequence[str], guidance_scale: float
) -> list[Float[Tensor, "3 H W"]]:
    """One picture in [-1, 1] per prompt; seeds count up, so sheets of a run can be compared.

    Args:
        pipeline: as :func:`training_pipeline` makes it.
        prompts: to draw.
        guidance_scale: of all scales.
    """
    scales = len(pipeline.schedule())
    falling = max(1, scales - SAMPLED_SCALES)
    temperature = [
        min(1.0, max(0.05, 1 - (si + 1 - SAMPLED_SCALES) / falling)) for si in range(scales)
    ]
    images = pipeline(
        list(prompts),
        guidance_scale=guidance_scale,
        temperature=temperature,
        seed=list(range(len(prompts))),
        output_type="pt",
    ).images
    return [image.clone() * 2 - 1 for image in images]
