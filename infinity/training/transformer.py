"""Trains the transformer on precomputed latents, in phases over growing prefixes of the scales.

Source: spec infinity-transformer §11 and embedded-model, "Recommended recipe"; Infinity (arXiv
2412.04431), sec. 3.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from infinity.errors import UserError
from infinity.text import TextEncoder, load_text_encoder
from infinity.training.checkpoint import read_index
from infinity.training.config import PhaseConfig, TrainTransformerConfig
from infinity.training.flops import phase_flops
from infinity.training.initialize import decays, initialize
from infinity.training.latents import LatentCache
from infinity.training.loop import train
from infinity.training.prompt_sheet import draw_prompts, training_model_config, training_pipeline
from infinity.training.run import TrainingRun
from infinity.training.session import open_session
from infinity.training.sheet import save_grid
from infinity.training.source import TrainingData, load_training_data
from infinity.training.teacher_forcing import TransformerObjective, TransformerStep, sequence_plan
from infinity.training.tokenizer_checkpoint import load_tokenizer
from infinity.training.transformer_batches import TransformerBatches, latent_caches, phase_schedules
from infinity.transformer.model import InfinityTransformer


@dataclass(frozen=True)
class TransformerResult:
    """How a transformer run ended.

    Attributes:
        folder: the checkpoint.
        steps: steps taken in each phase.
        loss: weighted loss of the last logged batch, nats per bit.
    """

    folder: Path
    steps: tuple[int, ...]
    loss: float


def run_transformer(
    config: TrainTransformerConfig,
    data: TrainingData | None = None,
    text_encoder: TextEncoder | None = None,
) -> TransformerResult:
    """Trains a transformer as ``config`` says; leaves checkpoint, log and sheets in its folder.

    Args:
        config: the run.
        data: image source; the embedded model's drawings by default.
        text_encoder: must have ``encode_batch``; the one in ``text_encoder_dir`` by default.

    Raises:
        UserError: data, tokenizer, text encoder or the checkpoint to resume from is missing or
            does not fit.
    """
    return TransformerTrainer(config, data, text_encoder).run()


class TransformerTrainer:
    """Holds model, cache and run; trains one phase after the other.

    Args:
        config: the run.
        data: image source; the embedded model's drawings by default.
        text_encoder: frozen.
    """

    def __init__(
        self,
        config: TrainTransformerConfig,
        data: TrainingData | None = None,
        text_encoder: TextEncoder | None = None,
    ) -> None:
        self.config = config
        self.session = open_session(config)
        self.tokenizer = load_tokenizer(config.tokenizer_dir, self.session.device)
        self.model_config = training_model_config(config, self.tokenizer.config)
        self.schedules = phase_schedules(config)
        self.text_encoder = text_encoder or load_text_encoder(
            self.model_config.text_encoder,
            Path(config.text_encoder_dir),
            self.session.device,
            torch.float32,
        )
        self.data = data or load_training_data(config.data, self.session.device)
        self.model = initialize(InfinityTransformer(config.model)).to(self.session.device)
        compiled = config.compile and self.session.device.type == "cuda"
        if compiled:
            self.tokenizer.encoder.compile(dynamic=False)
        self.objective = self.session.accelerator.prepare_model(
            TransformerObjective(self.model, compiled)
        )
        self.batches = TransformerBatches(
            config=config,
            schedules=self.schedules,
            caches=self._latent_caches(),
            gains=self.tokenizer.gains,
            rank=self.session.rank,
            processes=self.session.processes,
        )

    def _latent_caches(self) -> dict[float, LatentCache]:
        config, parts = self.config, (self.data, self.tokenizer, self.text_encoder)
        parameters = sum(p.numel() for p in self.model.parameters())
        caches = {}
        for ratio, cache, times in latent_caches(config, self.session, self.schedules, *parts):
            self.session.log.write(
                "cache",
                aspect_ratio=ratio,
                images=len(cache),
                **asdict(times),
                text_slots=cache.text.shape[1],
                parameters=parameters,
            )
            caches[ratio] = cache
        return caches

    def run(self) -> TransformerResult:
        config = self.config
        run = TrainingRun(
            self.model,
            self.session.accelerator,
            config.optimizer,
            decays,
            config.ema_window,
            self.session.budget(1, 1.0),
        )
        first, steps, seconds = self._resume(run)
        taken: list[int] = []
        loss = float("nan")
        for number in range(first, len(config.phases)):
            phase = config.phases[number]
            resumed = number == first and steps > 0
            used = (steps, seconds) if resumed else (0, 0.0)
            run.budget = self.session.budget(phase.max_steps, phase.max_seconds, *used)
            if not resumed:
                run.ema.restart()
            loss = self._train(run, number, phase)
            taken.append(run.budget.steps)
            self._save(run, number)
            self._sheet(run, f"phase-{number}")
        return TransformerResult(self.session.checkpoint, tuple(taken), loss)

    def _resume(self, run: TrainingRun) -> tuple[int, int, float]:
        """First phase to run, and the steps and seconds of it that are already done."""
        if self.config.resume_from is None:
            return 0, 0, 0.0
        folder = Path(self.config.resume_from)
        if "phase" not in read_index(folder):
            raise UserError(f"{folder}: this checkpoint holds no transformer run.")
        if self.config.resume == "weights":
            run.start_from(folder)
            self.session.log.write("started from", folder=str(folder))
            return 0, 0, 0.0
        index = run.load(folder)
        self.session.log.write("resumed", steps=index["steps"], phase=index["phase"])
        return index["phase"], index["steps"], index["seconds"]

    def _train(self, run: TrainingRun, number: int, phase: PhaseConfig) -> float:
        config, budget = self.config, run.budget
        plans = {
            ratio: sequence_plan(
                schedule, phase.scales, config.model, config.scale_weights, self.session.device
            )
            for ratio, schedule in self.schedules.items()
        }
        self.model.train()
        losses = [float("nan")]

        def step() -> tuple[float, TransformerStep]:
            ratio, batch = self.batches.draw(number, phase, budget.steps)
            output: TransformerStep = self.objective(*batch, plans[ratio])
            run.step(output.loss, budget.progress if phase.decay else 0.0)
            return ratio, output

        def log(found: tuple[float, TransformerStep], steps_per_s: float) -> None:
            losses.append(self._log_step(run, number, phase, *found, steps_per_s))

        train(
            run,
            step,
            device=self.session.device,
            until_seconds=None,
            log_every=config.log_every,
            on_first=lambda s: self.session.log.write("first step", phase=number, seconds=s),
            on_log=log,
            recurring=(
                (
                    config.sheet_every_seconds,
                    lambda: self._sheet(run, f"phase-{number}-step-{budget.steps:06d}"),
                ),
                (config.checkpoint.every_seconds, lambda: self._save(run, number)),
            ),
        )
        return losses[-1]

    def _log_step(
        self,
        run: TrainingRun,
        number: int,
        phase: PhaseConfig,
        ratio: float,
        output: TransformerStep,
        steps_per_s: float,
    ) -> float:
        images_per_s = steps_per_s * phase.batch_size * self.session.processes
        flops = phase_flops(self.config.model, self.schedules, phase)
        loss = float(output.loss.detach())
        self.session.log.write(
            "step",
            phase=number,
            step=run.budget.steps,
            seconds=run.budget.now(),
            images_per_s=images_per_s,
            tflops=images_per_s * flops / 1e12,
            aspect_ratio=ratio,
            loss=loss,
            scale_losses=output.scale_losses.tolist(),
            bit_accuracies=output.scale_accuracies.tolist(),
            learning_rate=run.learning_rate,
        )
        return loss

    @torch.no_grad()
    def _sheet(self, run: TrainingRun, name: str) -> None:
        """Pictures of the configured prompts with the averaged weights."""
        if not self.session.is_main or not self.config.sheet_prompts:
            return
        parts = self.model, self.tokenizer, self.text_encoder
        pipeline = training_pipeline(self.model_config, *parts, self.session.device)
        self.model.eval()
        with run.ema.swapped_in(), torch.compiler.set_stance("force_eager"):
            images = draw_prompts(pipeline, self.config.sheet_prompts, self.config.sheet_guidance)
        self.model.train()
        save_grid(images, self.session.folder / "sheets" / f"{name}.png")

    def _save(self, run: TrainingRun, number: int) -> None:
        description = {
            "phase": number,
            "transformer": asdict(self.config.model),
            "tokenizer_dir": self.config.tokenizer_dir,
            "config": asdict(self.config),
        }
        run.save(self.session.checkpoint, self.config.checkpoint, description)
