"""What the training commands read: frozen dataclasses, and the loader of
``configs/train/*.yaml``.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, MinLen

from infinity.config import (
    PRESETS,
    UNKNOWN_KEYS_FORBIDDEN,
    Resolution,
    TokenizerConfig,
    TransformerConfig,
)

Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Le(1)]
Count = Annotated[int, Ge(1)]


@dataclass(frozen=True, kw_only=True)
class FetchDataConfig:
    """What ``stepvar train data`` makes.

    Attributes:
        output_dir: folder of the pack of drawings and its manifest.
        package_cache: fetched archives are kept here, and not fetched again.
    """

    __pydantic_config__ = UNKNOWN_KEYS_FORBIDDEN

    output_dir: Annotated[str, MinLen(1)]
    package_cache: Annotated[str, MinLen(1)]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the drawings are and how many validation batches are drawn from the held-out pairs."""

    __pydantic_config__ = UNKNOWN_KEYS_FORBIDDEN

    pack: str = ".data/embedded/drawings.zip"
    rendered_dir: str = ".data/embedded"
    held_out_images: Count = 512


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its learning rate: linear warm-up, constant, then linear to ``final_fraction``.

    Attributes:
        weight_decay: on matrices only.
        clip_norm: largest gradient norm.
        warmup_steps: also used to warm up again after a resume that starts with fresh moments.
        decay_from: fraction of the run (by steps or by time, whichever is further) at which the
            rate starts to fall.
    """

    __pydantic_config__ = UNKNOWN_KEYS_FORBIDDEN

    learning_rate: Positive
    betas: tuple[Fraction, Fraction]
    weight_decay: NonNegative
    clip_norm: Positive = 1.0
    warmup_steps: Annotated[int, Ge(0)] = 200
    decay_from: Fraction = 0.6
    final_fraction: Fraction = 0.02


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What a run leaves behind to be resumed from.

    Attributes:
        state: ``full`` stores fp32 weights, moments and EMA (a resumed run equals an
            uninterrupted one); ``half`` stores raw and EMA weights in fp16 only.
        shard_mib: largest size of a file.
        every_seconds: time between checkpoints; one is always written at the end.
    """

    __pydantic_config__ = UNKNOWN_KEYS_FORBIDDEN

    state: Literal["full", "half"] = "full"
    shard_mib: Positive = 15.0
    every_seconds: Positive = 600.0


@dataclass(frozen=True, kw_only=True)
class QuantizerArm:
    """One way to train the quantiser; several arms are compared before one is trained on.

    Attributes:
        name: shown in logs.
        gains: one learned code amplitude per scale (running mean of the residual's magnitude,
            features of unit RMS); False = the family's unit-norm codes.
        straight_through: ``scales`` passes gradients through every scale's normalisation and adds
            the family's commitment and entropy loss; ``latent`` copies the gradient of the summed
            codes to the features and adds a commitment loss.
        loss_weight: weight of that loss.
        scale_drop: probability that a scale other than the last is left out of a step.
    """

    __pydantic_config__ = UNKNOWN_KEYS_FORBIDDEN

    name: str
    gains: bool
    straight_through: Literal["scales", "latent"]
    loss_weight: NonNegative
    scale_drop: Annotated[float, Ge(0), Le(0.9)] = 0.0


@dataclass(frozen=True, kw_only=True)
class PerceptualConfig:
    """A loss on the features of a network that is trained first, to guess the captions' words.

    Attributes:
        weight: of the distance of the features; 0 trains no such network.
        seconds: training time of that network.
        max_steps: at most so many steps of it.
    """

    __pydantic_config__ = UNKNOWN_KEYS_FORBIDDEN

    weight: NonNegative = 0.0
    seconds: Positive = 40.0
    max_steps: Count = 1_000_000


@dataclass(frozen=True, kw_only=True)
class TrainTokenizerConfig:
    """A tokenizer training run.

    Attributes:
        output_dir: checkpoints, log and sheets go here.
        resume_from: a checkpoint folder of an earlier run.
        resume: ``continue`` goes on where that run stopped, within the same allowance; ``weights``
            starts anew from its averaged weights, with fresh moments.
        arms: quantiser variants, the first is the default choice.
        compare_seconds: training time of each arm before the choice (none with a single arm).
        prefer_margin_db: held-out PSNR by which another arm must beat the first.
        max_seconds: training time in all of the chosen arm, compilation excluded.
        max_steps: steps in all of the chosen arm.
        wall_seconds: the run ends about so long after its start, compilation and data included, by
            shortening ``max_seconds``; None = no such limit. Evaluation and saving come on top.
        train: ``all``, or the ``decoder`` alone on images whose features are computed once: the
            codes stay what they are, so that a transformer trained on them stays valid. Needs
            resume_from.
        cache_images: images composed and encoded beforehand for ``train: decoder``.
        gradient_levels: sizes at which gradients are compared, each half of the one before.
        log_error_weight: of the logarithm of every image's squared error, the quantity of PSNR.
        masking_contrast: contrast (of 2, black to white) at which an error counts half of what it
            counts in a flat area; 0 = all pixels alike.
        corner_weight: weight of the corner pixels, within two latent cells of both borders,
            relative to the others; networks with group normalisation like to leave traces there.
        prefix_probability: share of images decoded from a prefix of the scales.
        prefix_scales: smallest and largest number of scales in such a prefix.
    """

    __pydantic_config__ = UNKNOWN_KEYS_FORBIDDEN

    output_dir: str
    resume_from: str | None = None
    resume: Literal["continue", "weights"] = "continue"
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    model: TokenizerConfig = PRESETS["embedded"].tokenizer
    resolution: Resolution = "0.25M"
    train: Literal["all", "decoder"] = "all"
    cache_images: Count = 60_000
    arms: Annotated[tuple[QuantizerArm, ...], MinLen(1)]
    compare_seconds: Positive = 75.0
    prefer_margin_db: NonNegative = 0.3
    max_seconds: Positive
    max_steps: Count
    wall_seconds: Positive | None = None
    batch_size: Count = 64
    l1_weight: NonNegative = 1.0
    l2_weight: NonNegative = 0.5
    gradient_weight: NonNegative = 0.7
    gradient_levels: Annotated[int, Ge(1), Le(6)] = 3
    log_error_weight: NonNegative = 0.0
    masking_contrast: NonNegative = 0.0
    corner_weight: Positive = 1.0
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)
    prefix_probability: Fraction = 0.25
    prefix_scales: tuple[Count, Count] = (5, 9)
    optimizer: OptimizerConfig
    ema_window: Count = 200
    compile: bool = True
    log_every: Count = 50
    sheet_every_seconds: Positive = 600.0
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)


@dataclass(frozen=True, kw_only=True)
class AspectShare:
    """How much of a phase is spent on one picture shape.

    Attributes:
        ratio: height over width; the nearest template of the schedule's table is used.
        share: of the steps, relative to the other shares.
    """

    __pydantic_config__ = UNKNOWN_KEYS_FORBIDDEN

    ratio: Positive
    share: Positive


@dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    """One stage of transformer training: a prefix of the scales is a complete, cheaper problem.

    Attributes:
        aspect_ratios: picture shapes; every step has one of them.
        scales: number of leading scales trained.
        batch_size: images per step and process.
        max_seconds: training time, compilation excluded.
        max_steps: at most so many steps.
        decay: whether the learning rate falls in this phase (else it stays constant).
    """

    __pydantic_config__ = UNKNOWN_KEYS_FORBIDDEN

    aspect_ratios: Annotated[tuple[AspectShare, ...], MinLen(1)] = (
        AspectShare(ratio=1.0, share=1.0),
    )
    scales: Count
    batch_size: Count
    max_seconds: Positive
    max_steps: Count
    decay: bool


@dataclass(frozen=True, kw_only=True)
class SelfCorrectionConfig:
    """Bitwise self-correction: bits fed back are flipped, labels are recomputed.

    Attributes:
        strength: largest flip probability.
        per: ``scale`` draws one probability per scale for the whole batch (the family's rule);
            ``image`` draws one per image.
        clean: share of images (or of scales) that are fed back unflipped.
    """

    __pydantic_config__ = UNKNOWN_KEYS_FORBIDDEN

    strength: Annotated[float, Ge(0), Le(0.5)] = 0.2
    per: Literal["scale", "image"] = "image"
    clean: Fraction = 0.1


@dataclass(frozen=True, kw_only=True)
class TrainTransformerConfig:
    """A transformer training run on precomputed latents.

    Attributes:
        output_dir: checkpoints, log and sheets go here.
        resume_from: a checkpoint folder of an earlier run.
        resume: ``continue`` goes on where that run stopped, within the allowances of its phases;
            ``weights`` runs all phases anew from its averaged weights, with fresh moments.
        tokenizer_dir: folder with the tokenizer's ``ema`` weights.
        text_encoder_dir: folder of the MiniLM text encoder.
        cache_images: composed images whose latents and text features are held on the device,
            divided among the aspect ratios.
        phases: run one after the other; the EMA restarts with each.
        wall_seconds: the run ends about so long after its start, compilation and data included, by
            shortening the phase it falls in; None = no limit. Evaluation and saving come on top.
        condition_dropout: probability that an image's text is replaced by the unconditional rows.
        scale_weights: ``reweighted`` counts a scale ∝ the side of its grid (the family's per-token
            sqrt(L_last / L_s) rule); ``uniform`` counts all tokens equally.
        sheet_prompts: drawn with the averaged weights at the end of a phase and in between.
    """

    __pydantic_config__ = UNKNOWN_KEYS_FORBIDDEN

    output_dir: str
    resume_from: str | None = None
    resume: Literal["continue", "weights"] = "continue"
    tokenizer_dir: str
    text_encoder_dir: str = "weights/text_encoder"
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    model: TransformerConfig = PRESETS["embedded"].transformer
    resolution: Resolution = "0.25M"
    cache_images: Count = 160_000
    phases: Annotated[tuple[PhaseConfig, ...], MinLen(1)]
    wall_seconds: Positive | None = None
    self_correction: SelfCorrectionConfig = field(default_factory=SelfCorrectionConfig)
    condition_dropout: Fraction = 0.1
    scale_weights: Literal["uniform", "reweighted"] = "reweighted"
    optimizer: OptimizerConfig
    ema_window: Count = 200
    compile: bool = True
    log_every: Count = 50
    sheet_every_seconds: Positive = 600.0
    sheet_prompts: tuple[str, ...] = ()
    sheet_guidance: Positive = 4.0
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
