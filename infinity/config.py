"""Model configurations: what a checkpoint is made of, as plain frozen dataclasses."""

from dataclasses import dataclass, field
from typing import Literal

Resolution = Literal["0.06M", "0.25M", "0.60M", "1M"]
"""Pixel-count class of a schedule: 7, 10, 12 or 13 scales (spec: scale schedules)."""

EngineMode = Literal["auto", "plain", "eager", "graphs"]
"""``plain``: the modules as they read. ``eager``: fused kernels, launched one by one. ``graphs``:
fused kernels, and calls that come a second time recorded into CUDA graphs. ``auto``: graphs where
the kernels run, else plain, with the reason in the log.
"""

Quantization = Literal["int8", "fp8"]
"""What the block matrices are kept in while drawing: one byte a weight and a scale a row; int8 has
8 bits for a row's largest value, fp8 (e4m3) 4 significant ones for each."""

UNKNOWN_KEYS_FORBIDDEN = {"extra": "forbid"}
"""What pydantic reads off a dataclass when it stands at the door (a plain dict: no import here)."""


_LIMITS: dict[str, tuple[float, float]] = {
    "depth": (1, 256),
    "width": (4, 1 << 16),
    "heads": (1, 1 << 10),
    "block_chunks": (1, 256),
    "codebook_dim": (1, 1 << 10),
    "text_width": (1, 1 << 16),
    "text_max_tokens": (1, 1 << 16),
    "mlp_ratio": (0.25, 64),
    "norm_eps": (0, 1),
    "patch_size": (1, 256),
    "channels": (1, 1 << 14),
    "res_blocks": (0, 64),
    "scale_gains": (0, 64),
}
"""Smallest and largest values: a manifest is not trusted, and building a model takes memory in
proportion to them."""


def _check_limits(config: object) -> None:
    """Makes sure that every field is within its limits.

    Raises:
        ValueError: one is not.
    """
    for name, (low, high) in _LIMITS.items():
        if hasattr(config, name) and not low <= getattr(config, name) <= high:
            raise ValueError(f"{name} {getattr(config, name)} must be from {low} to {high}")


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Shape of the bitwise autoregressive transformer.

    Options that every released checkpoint shares (GELU FFN, LayerNorm, shared adaLN, cosine
    attention, RoPE mode 2, level embedding before the first block, depth-1 head with adaLN) are
    not options here.
    """

    __pydantic_config__ = UNKNOWN_KEYS_FORBIDDEN

    depth: int
    width: int
    heads: int
    block_chunks: int
    codebook_dim: int
    patchify: bool = False
    text_width: int = 2048
    text_max_tokens: int = 512
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-6
    rope_reference: Resolution = "1M"

    def __post_init__(self) -> None:
        _check_limits(self)
        if self.width % self.heads or (self.width // self.heads) % 4:
            raise ValueError(f"width {self.width} must be a multiple of 4·heads, {4 * self.heads}")
        if self.depth % self.block_chunks:
            raise ValueError(f"depth {self.depth} must be a multiple of {self.block_chunks} chunks")
        if self.width % self.pool_heads:
            raise ValueError(
                f"width {self.width} must be a multiple of {self.pool_heads} pool heads"
            )

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def token_bits(self) -> int:
        """Bits of one transformer token: the tokenizer's, times four with 2×2 spatial patchify."""
        return self.codebook_dim * (4 if self.patchify else 1)

    @property
    def ffn_width(self) -> int:
        return 256 * round(self.width * self.mlp_ratio / 256)

    @property
    def pool_heads(self) -> int:
        return max(1, self.text_width // (128 if self.width <= 4096 else 64))


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Shape of the BSQ autoencoder. ``patch_size`` is the pixel stride of one latent cell.

    ``scale_gains`` is the number of scales that have a stored code amplitude (an extension of the
    family); 0, the value of every released checkpoint, means unit-norm codes.
    """

    __pydantic_config__ = UNKNOWN_KEYS_FORBIDDEN

    codebook_dim: int
    patch_size: int
    channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 2, 4, 4, 4)
    res_blocks: int = 2
    scale_gains: int = 0

    def __post_init__(self) -> None:
        _check_limits(self)
        if not all(1 <= m <= 64 for m in self.channel_multipliers[:16]):
            raise ValueError("channel_multipliers must be from 1 to 64")
        if not 1 <= len(self.channel_multipliers) <= 16:
            raise ValueError("channel_multipliers must list 1 to 16 levels")
        strides = self.patch_size.bit_length() - 1
        if self.patch_size != 1 << strides or strides > len(self.channel_multipliers):
            raise ValueError(
                f"patch_size {self.patch_size} must be a power of two of at most "
                f"2^{len(self.channel_multipliers)}, one halving per level"
            )

    @property
    def downsamplings(self) -> int:
        return self.patch_size.bit_length() - 1


@dataclass(frozen=True, kw_only=True)
class TextEncoderConfig:
    """Which text encoder feeds the transformer; ``width`` must equal the transformer's
    ``text_width``.
    """

    kind: Literal["t5", "minilm"]
    width: int
    max_tokens: int


@dataclass(frozen=True, kw_only=True)
class SamplingDefaults:
    """What a generation call uses when the caller gives nothing. Lists hold one value per scale."""

    guidance_scale: float | tuple[float, ...] = 3.0
    temperature: float | tuple[float, ...] = 0.5
    top_k: int = 900
    top_p: float = 0.97
    guidance_layers: tuple[int, ...] = (0,)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that a model directory's manifest says about the model it holds."""

    name: str
    resolution: Resolution
    transformer: TransformerConfig
    tokenizer: TokenizerConfig
    text_encoder: TextEncoderConfig
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)

    def __post_init__(self) -> None:
        if self.transformer.codebook_dim != self.tokenizer.codebook_dim:
            raise ValueError(
                f"{self.name}: codebook_dim is {self.transformer.codebook_dim} in the transformer "
                f"and {self.tokenizer.codebook_dim} in the tokenizer"
            )
        if self.transformer.text_width != self.text_encoder.width:
            raise ValueError(
                f"{self.name}: transformer text_width {self.transformer.text_width} differs from "
                f"text encoder width {self.text_encoder.width}"
            )


_T5_XL = TextEncoderConfig(kind="t5", width=2048, max_tokens=512)


def _official(
    name: str,
    resolution: Resolution,
    depth: int,
    width: int,
    heads: int,
    chunks: int,
    codebook_dim: int,
    patchify: bool,
    sampling: SamplingDefaults,
) -> ModelConfig:
    return ModelConfig(
        name=name,
        resolution=resolution,
        transformer=TransformerConfig(
            depth=depth,
            width=width,
            heads=heads,
            block_chunks=chunks,
            codebook_dim=codebook_dim,
            patchify=patchify,
        ),
        tokenizer=TokenizerConfig(
            codebook_dim=codebook_dim,
            patch_size=8 if patchify else 16,
            channel_multipliers=(1, 2, 4, 4) if patchify else (1, 2, 4, 4, 4),
        ),
        text_encoder=_T5_XL,
        sampling=sampling,
    )


_8B = SamplingDefaults(guidance_scale=3.0, temperature=1.0)

PRESETS: dict[str, ModelConfig] = {
    "infinity-125m": _official(
        "infinity-125m", "0.06M", 12, 768, 8, 4, 16, False, SamplingDefaults(guidance_scale=4.0)
    ),
    "infinity-2b": _official("infinity-2b", "1M", 32, 2048, 16, 8, 32, False, SamplingDefaults()),
    "infinity-8b": _official("infinity-8b", "1M", 40, 3584, 28, 8, 14, True, _8B),
    "infinity-8b-512": _official("infinity-8b-512", "0.25M", 40, 3584, 28, 8, 14, True, _8B),
    "embedded": ModelConfig(
        name="embedded",
        resolution="0.25M",
        transformer=TransformerConfig(
            depth=8,
            width=384,
            heads=6,
            block_chunks=1,
            codebook_dim=16,
            text_width=384,
            text_max_tokens=64,
            rope_reference="0.25M",
        ),
        tokenizer=TokenizerConfig(
            codebook_dim=16,
            patch_size=8,
            channels=32,
            channel_multipliers=(1, 2, 4, 6),
            scale_gains=10,
        ),
        text_encoder=TextEncoderConfig(kind="minilm", width=384, max_tokens=64),
        sampling=SamplingDefaults(
            guidance_scale=(6.0,) * 7 + (3.0,) * 3,
            temperature=(0.6, 0.6, 0.6, 0.55, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1),
        ),
    ),
}
"""Published settings of the released checkpoints (spec: infinity-transformer §1) and of the model
in ``weights/``.
"""
