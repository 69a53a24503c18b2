"""Prompts in, pictures out: the generator as one object."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from numbers import Integral
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, get_args

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from infinity.arguments import listed_negatives, listed_prompts, listed_seeds
from infinity.checkpoint import load_into, load_model_config
from infinity.config import EngineMode, ModelConfig, Resolution
from infinity.engine import Engine, refuse_mode
from infinity.errors import Mistakes, UserError, collecting
from infinity.loading import current, open_model, own_text_encoder, resolve_device, resolve_dtype
from infinity.memory import batch_that_fits
from infinity.output import OutputType, PipelineOutput, as_output
from infinity.picture import picture_schedule
from infinity.policy import DensePolicy, PruningPolicy
from infinity.sampling.loop import ScaleEnd
from infinity.sampling.noise import GeneratorNoise, NoiseSource, PerImageNoise
from infinity.sampling.settings import PerScale, SamplingSettings, resolve_settings
from infinity.schedule import ScaleSchedule
from infinity.text import TextEncoder, TextFeatures, load_text_encoder
from infinity.timing import NO_TIMER, StageClock, StageTimer
from infinity.tokenizer.autoencoder import BSQTokenizer, decoded_together
from infinity.tokenizer.banded import BandedDecoder
from infinity.transformer.model import InfinityTransformer

logger = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")


def _on_its_device(
    method: Callable[Concatenate["InfinityPipeline", P], R],
) -> Callable[Concatenate["InfinityPipeline", P], R]:
    @wraps(method)
    def run(self: "InfinityPipeline", *args: P.args, **kwargs: P.kwargs) -> R:
        with current(self.device):
            return method(self, *args, **kwargs)

    return run


@dataclass(eq=False)
class InfinityPipeline:
    """Text encoder, transformer and tokenizer of one model, ready to draw.

    Attributes:
        digest: sha256 that identifies the weights.
        dtype: compute dtype of the transformer, and of the decoder.
        policy: which tokens are computed; dense unless a patch is applied.
        attention: backend name, or "auto".
        max_batch_size: images computed together. On CPU it is 1: larger batches gain nothing there,
            and one image at a time makes every image independent of the batch to the last bit. On a
            GPU it is 8, or fewer where its memory holds fewer of the model's own size.
        engine: how calls are carried out, see :data:`infinity.config.EngineMode`.
        fp8: run the blocks' large matrix products in fp8 (Hopper and newer).
    """

    config: ModelConfig
    transformer: InfinityTransformer
    tokenizer: BSQTokenizer
    text_encoder: TextEncoder
    digest: str
    device: torch.device
    dtype: torch.dtype
    policy: PruningPolicy = field(default_factory=DensePolicy)
    attention: str = "auto"
    max_batch_size: int = 1
    engine: EngineMode = "auto"
    fp8: bool = False
    _engine: Engine | None = field(default=None, init=False, repr=False)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        tokenizer: str | Path | None = None,
        text_encoder: str | Path | None = None,
        device: str | None = None,
        dtype: str | None = None,
        encoder: TextEncoder | None = None,
        engine: EngineMode = "auto",
        fp8: bool = False,
    ) -> "InfinityPipeline":
        """The model at ``path``.

        Args:
            path: a model directory (see ``stepvar convert``), or an official transformer file or
                folder of shards, used in place together with ``tokenizer``.
            tokenizer: the official tokenizer file that belongs to an official transformer.
            text_encoder: folder of the text encoder; None takes the one in the model directory.
            device: "cpu", "cuda" or "cuda:N"; None takes a GPU if there is one.
            dtype: "float32" or "bfloat16"; None takes bfloat16 on a GPU, float32 on a CPU.
            encoder: used in place of the one in ``text_encoder``, which is then not read.
            engine: how calls are carried out, see :data:`infinity.config.EngineMode`.
            fp8: run the blocks' large matrix products in fp8 (Hopper and newer).

        Raises:
            Mistakes: every file that is missing, corrupt or of another model.
            UserError: no such device or dtype; an engine that does not run on the device.
        """
        path = Path(path)
        where = resolve_device(device)
        precision = resolve_dtype(dtype, where)
        refuse_mode(engine, where)
        found: list[str] = []
        with collecting(found):
            config, states, identity = open_model(path, tokenizer)
        if encoder is None and text_encoder is not None:
            folder = Path(text_encoder)
        elif encoder is None and (tokenizer is None or not found):
            with collecting(found):
                known = load_model_config(path) if tokenizer is None else config
                folder = own_text_encoder(path, known)
        if found:
            raise Mistakes(found)
        with torch.device("meta"):
            transformer = InfinityTransformer(config.transformer)
            autoencoder = BSQTokenizer(config.tokenizer)
        transformer.set_compute_dtype(precision)
        load_into(transformer, states["transformer"], context=str(path), device=where)
        load_into(autoencoder, states["tokenizer"], context=str(tokenizer or path), device=where)
        for module in (transformer, autoencoder):
            module.eval().requires_grad_(False)
        if encoder is None:
            encoder = load_text_encoder(config.text_encoder, folder, where, precision)
        logger.info("loaded %s on %s in %s", config.name, where, precision)
        return cls(
            config=config,
            transformer=transformer,
            tokenizer=autoencoder,
            text_encoder=encoder,
            digest=identity,
            device=where,
            dtype=precision,
            max_batch_size=_default_batch(config, where, precision),
            engine=engine,
            fp8=fp8,
        )

    @_on_its_device
    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        negative_prompt: str | Sequence[str] | None = None,
        guidance_scale: PerScale | None = None,
        temperature: PerScale | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance_layers: Sequence[int] | None = None,
        seed: int | Sequence[int] | None = None,
        aspect_ratio: float | None = None,
        height: int | None = None,
        width: int | None = None,
        resolution: Resolution | None = None,
        num_images_per_prompt: int = 1,
        output_type: OutputType = "pil",
        compatibility: bool = False,
        callback_on_scale_end: Callable[[ScaleEnd], None] | None = None,
        stage_clock: StageClock | None = None,
    ) -> PipelineOutput:
        """Pictures for ``prompts``.

        An image depends on weights, its prompt, its seed and the settings, never on the batch:
        exactly so on a CPU, up to the rounding of batched kernels on a GPU.

        Args:
            prompts: one or several.
            negative_prompt: what to stay away from: one for all prompts, or one each; empty means
                the model's own unconditional features.
            guidance_scale: how strongly to follow the prompt; a number or one per scale, 1 = off.
            temperature: of bit sampling; a number or one per scale, > 0.
            top_k: 1 = greedy.
            top_p: bits whose likelier value reaches this probability are not sampled; 0 = off.
            guidance_layers: 0 = on logits, ``-k`` = on the output of the k-th last block.
            seed: one for all prompts or one per prompt, in [0, 2^63); further images of a prompt
                count up from it. None draws seeds and reports them.
            aspect_ratio: height / width, mapped to the nearest of the 15 templates.
            height: pixels; with ``width``, instead of ``aspect_ratio``; must be a template's size.
            width: pixels.
            resolution: another resolution class than the model's own.
            num_images_per_prompt: how many.
            output_type: see :class:`PipelineOutput`.
            compatibility: draw random numbers and convert to uint8 exactly as the original program
                does: one generator for the whole batch, truncation instead of rounding.
            callback_on_scale_end: called after every scale of every computed batch.
            stage_clock: fresh; takes the times of every stage of every scale.

        Raises:
            UserError: a value out of range, or lists whose lengths do not fit.
        """
        prompts = listed_prompts(prompts)
        if not isinstance(num_images_per_prompt, Integral) or num_images_per_prompt < 1:
            raise UserError(
                f"num_images_per_prompt is {num_images_per_prompt!r}; allowed: an integer from 1"
            )
        if output_type not in get_args(OutputType):
            raise UserError(f"output_type is {output_type!r}; allowed: {get_args(OutputType)}")
        schedule = self.schedule(
            aspect_ratio=aspect_ratio, height=height, width=width, resolution=resolution
        )
        settings = resolve_settings(
            self.config.sampling,
            len(schedule),
            self.config.transformer.depth,
            guidance_scale=guidance_scale,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            guidance_layers=guidance_layers,
        )
        seeds = listed_seeds(seed, len(prompts), num_images_per_prompt, shared=compatibility)
        negatives = listed_negatives(negative_prompt, len(prompts))

        clock = StageClock(self.device) if stage_clock is None else stage_clock
        text = self.text_encoder.encode(prompts).split()
        encoded = {n: self.text_encoder.encode([n]).rows for n in set(negatives) if n}
        negative_rows = [encoded.get(n) for n in negatives]
        clock.mark("text")
        order = [i for i in range(len(prompts)) for _ in range(num_images_per_prompt)]
        size = len(order) if compatibility else self.max_batch_size
        latents, pictures = [], []
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            if compatibility:
                noise: NoiseSource = GeneratorNoise(seeds[0], len(batch), self.device)
            else:
                noise = PerImageNoise(seeds[start : start + size], self.device)
            latent = self._latents(
                [text[i] for i in batch],
                [negative_rows[i] for i in batch],
                schedule,
                settings,
                noise,
                callback_on_scale_end,
                NO_TIMER if stage_clock is None else stage_clock,
            )
            clock.mark("scales")
            if output_type != "latent":
                pictures.append(self.decode_tensor(latent))
            clock.mark("decode")
            latents.append(latent)
        all_latents = torch.cat(latents)
        images: list[Any] = list(all_latents)
        if output_type != "latent":
            images = as_output(torch.cat(pictures), output_type, truncate=compatibility)
        return PipelineOutput(images, seeds, _timings(clock), all_latents)

    def schedule(
        self,
        *,
        aspect_ratio: float | None = None,
        height: int | None = None,
        width: int | None = None,
        resolution: Resolution | None = None,
    ) -> ScaleSchedule:
        """The schedule of a picture shape; see :func:`infinity.picture.picture_schedule`."""
        return picture_schedule(
            self.config,
            aspect_ratio=aspect_ratio,
            height=height,
            width=width,
            resolution=resolution,
        )

    @_on_its_device
    @torch.inference_mode()
    def decode_tensor(self, latent: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 3 H W"]:
        """Pictures in [−1, 1], fp32; on a CPU each decoded alone, so that batches cannot change
        them.
        """
        decoder = self.tokenizer.decoder
        pixels = latent[0, 0].numel() * self.tokenizer.config.patch_size**2
        alone = self.device.type != "cuda" or isinstance(decoder, BandedDecoder)
        parts = latent.split(1 if alone else decoded_together(pixels))
        fused = self.current_engine().decoder(decoder, self.dtype)
        if fused is not None:
            return torch.cat([fused(part) for part in parts])
        reduced = self.dtype != torch.float32
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=reduced):
            return torch.cat([self.tokenizer.decode(part) for part in parts]).float()

    def decode(self, latent: Float[Tensor, "b d h w"]) -> list[Image.Image]:
        """Pictures of summed codes, for example of a scale's latent so far."""
        return as_output(self.decode_tensor(latent), "pil")

    def current_engine(self) -> Engine:
        """The engine at work; a new one if model, mode or fp8 have been changed.

        Raises:
            UserError: the mode, or fp8, does not run on the pipeline's device.
        """
        asked = (self.transformer, self.engine, self.fp8)
        if self._engine is None or self._engine.asked != asked:
            self._engine = Engine(self.transformer, mode=self.engine, fp8=self.fp8)
        return self._engine

    @torch.inference_mode()
    def _latents(
        self,
        text: list[Tensor],
        negative: list[Tensor | None],
        schedule: ScaleSchedule,
        settings: SamplingSettings,
        noise: NoiseSource,
        callback: Callable[[ScaleEnd], None] | None,
        timer: StageTimer,
    ) -> Tensor:
        rows = TextFeatures.stack([part.to(self.device) for part in text])
        if settings.guided:
            rows = self.transformer.with_unconditional(rows, negative)
        return self.current_engine().latents(
            rows,
            schedule,
            settings,
            noise,
            self.policy,
            images=len(text),
            gains=self.tokenizer.gains,
            decode=self.tokenizer.decode,
            attention=self.attention,
            on_scale_end=callback,
            timer=timer,
        )


def _default_batch(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> int:
    if device.type == "cpu":
        return 1
    total: int = torch.cuda.get_device_properties(device).total_memory
    return batch_that_fits(config, dtype, total)


def _timings(clock: StageClock) -> dict[str, float]:
    """Text encoder, decoder, and everything between them as one."""
    total = {"text": 0.0, "scales": 0.0, "decode": 0.0}
    for (stage, _), ms in clock.milliseconds().items():
        total[stage if stage in total else "scales"] += ms
    return total
