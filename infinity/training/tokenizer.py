"""Trains the BSQ tokenizer: compares quantiser arms for a while, then trains the better one on.

Source: spec bsq-vae §7 and embedded-model, parts C and "Decisions"; deviations: no discriminator,
and the perceptual network, where one is asked for, is trained on the spot (``caption_net.py``).
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from infinity.errors import UserError
from infinity.schedule import scale_schedule
from infinity.tokenizer.autoencoder import BSQTokenizer
from infinity.training.caption_net import CaptionNet, train_caption_net
from infinity.training.config import QuantizerArm, TrainTokenizerConfig
from infinity.training.loop import train
from infinity.training.quantizer_arms import choose, compare_arms
from infinity.training.reconstruction_loss import LossWeights, corner_weights
from infinity.training.run import TrainingRun
from infinity.training.session import open_session
from infinity.training.source import TrainingData, load_training_data
from infinity.training.tokenizer_batches import TokenizerBatches
from infinity.training.tokenizer_checkpoint import (
    read_tokenizer_run,
    restore_tokenizer_run,
    save_tokenizer_run,
)
from infinity.training.tokenizer_evaluation import evaluate_round_trip
from infinity.training.tokenizer_objective import StepOutput, TokenizerObjective

CORNER_CELLS = 2


@dataclass(frozen=True)
class TokenizerResult:
    """How a tokenizer run ended.

    Attributes:
        folder: the checkpoint.
        arm: name of the quantiser arm trained to the end.
        psnr_db: mean held-out round-trip PSNR of the averaged weights.
        steps: steps taken in all.
    """

    folder: Path
    arm: str
    psnr_db: float
    steps: int


def run_tokenizer(
    config: TrainTokenizerConfig, data: TrainingData | None = None
) -> TokenizerResult:
    """Trains a tokenizer as ``config`` says; leaves checkpoint, log and sheets in its output
    folder.

    Args:
        config: the run.
        data: image source; the embedded model's drawings by default.

    Raises:
        UserError: data or the checkpoint to resume from is missing or does not fit.
    """
    return TokenizerTrainer(config, data).run()


class TokenizerTrainer:
    """Holds the (once compiled) model; trains one arm after the other on it.

    Args:
        config: the run.
        data: image source; the embedded model's drawings by default.
    """

    def __init__(self, config: TrainTokenizerConfig, data: TrainingData | None = None) -> None:
        self.config = config
        if config.train == "decoder" and config.resume_from is None:
            raise UserError(
                "train is decoder, which needs resume_from: the checkpoint of a trained tokenizer."
            )
        self.session = open_session(config)
        self.data = data or load_training_data(config.data, self.session.device)
        self.grids = scale_schedule(1.0, config.resolution).grids
        expected_px = self.grids[-1][0] * config.model.patch_size
        if self.data.held_out.shape[-1] != expected_px:
            raise UserError(
                f"model.patch_size {config.model.patch_size} with resolution {config.resolution} "
                f"need images of {expected_px} px, the data has {self.data.held_out.shape[-1]} px."
            )
        if expected_px >> (config.gradient_levels - 1) < 2:
            raise UserError(
                f"gradient_levels is {config.gradient_levels}; allowed for images of "
                f"{expected_px} px: 1 to {expected_px.bit_length() - 1}"
            )
        self.objective = TokenizerObjective(
            BSQTokenizer(replace(config.model, scale_gains=0)),
            self.grids,
            self._loss_weights(),
            config.arms[0],
            self._pixel_weights(),
            self._caption_net(),
        ).to(self.session.device, memory_format=torch.channels_last)
        if config.compile and self.session.device.type == "cuda":
            self.objective.encoder.compile()
            self.objective.decoder.compile()
        if config.train == "decoder":
            self.objective.encoder.requires_grad_(False)
        self.batches = TokenizerBatches(config, self.session, self.data, len(self.grids))
        self.model = self.session.accelerator.prepare_model(self.objective)
        self.session.log.write(
            "model",
            encoder_parameters=sum(p.numel() for p in self.objective.encoder.parameters()),
            decoder_parameters=sum(p.numel() for p in self.objective.decoder.parameters()),
        )

    def _loss_weights(self) -> LossWeights:
        config = self.config
        return LossWeights(
            l1=config.l1_weight,
            l2=config.l2_weight,
            gradient=config.gradient_weight,
            log_error=config.log_error_weight,
            gradient_levels=config.gradient_levels,
            masking_contrast=config.masking_contrast,
        )

    def _pixel_weights(self) -> Tensor | None:
        if self.config.corner_weight == 1:
            return None
        size = self.data.held_out.shape[-2:]
        side = CORNER_CELLS * self.config.model.patch_size
        return corner_weights((size[0], size[1]), side, self.config.corner_weight)

    def _caption_net(self) -> tuple[float, CaptionNet] | None:
        wanted = self.config.perceptual
        if not wanted.weight:
            return None
        source = self.data.open(self.config.seed + 1, None)
        net, record = train_caption_net(
            source, self.session.device, wanted.seconds, wanted.max_steps
        )
        self.session.log.write("caption net", **record)
        return wanted.weight, net

    def run(self) -> TokenizerResult:
        config = self.config
        if config.resume_from is not None:
            run = self._resumed(Path(config.resume_from))
        elif len(config.arms) > 1:
            run = self._better_arm()
        else:
            run = self._fresh_run(config.arms[0])
        self._train(run, None)
        psnr = self._evaluate(run, "final")
        self._save(run, psnr)
        return TokenizerResult(
            self.session.checkpoint, self.objective.arm.name, psnr, run.budget.steps
        )

    def _fresh_run(self, arm: QuantizerArm, steps: int = 0, seconds: float = 0.0) -> TrainingRun:
        self.objective.select(arm)
        budget = self.session.budget(self.config.max_steps, self.config.max_seconds, steps, seconds)
        return TrainingRun(
            self.objective,
            self.session.accelerator,
            self.config.optimizer,
            lambda _, value: value.ndim >= 2,
            self.config.ema_window,
            budget,
        )

    def _resumed(self, folder: Path) -> TrainingRun:
        arm, index = read_tokenizer_run(folder)
        anew = self.config.resume == "weights"
        used = (0, 0.0) if anew else (index["steps"], index["seconds"])
        run = self._fresh_run(arm, *used)
        restore_tokenizer_run(folder, run, self.objective, anew=anew)
        if self.config.train == "decoder":
            self.batches.hold(self.objective.features)
        return run

    def _better_arm(self) -> TrainingRun:
        """The run of the arm to continue; the model holds its weights."""
        candidates = compare_arms(self.objective, self.config.arms, self._attempt)
        chosen = choose(candidates, self.config.prefer_margin_db)
        self.objective.arm = chosen.arm
        self.objective.load_state_dict(chosen.state)
        self.session.log.write(
            "chosen",
            arm=chosen.arm.name,
            psnr_db=[candidate.psnr_db for candidate in candidates],
        )
        return chosen.run

    def _attempt(self, arm: QuantizerArm) -> tuple[TrainingRun, float]:
        """A run of an arm as far as the comparison goes, and its PSNR there."""
        run = self._fresh_run(arm)
        self._train(run, self.config.compare_seconds)
        return run, self._evaluate(run, f"arm-{arm.name}")

    def _train(self, run: TrainingRun, until_seconds: float | None) -> None:
        config, budget = self.config, run.budget
        batches = self.batches.after(budget.steps, self.objective.arm.scale_drop)
        self.objective.train()

        def step() -> StepOutput:
            output: StepOutput = self.model(*next(batches))
            run.step(output.loss, budget.progress)
            return output

        train(
            run,
            step,
            device=self.session.device,
            until_seconds=until_seconds,
            log_every=config.log_every,
            on_first=lambda seconds: self.session.log.write("first step", seconds=seconds),
            on_log=lambda output, steps_per_s: self._log_step(run, output, steps_per_s),
            recurring=(
                (
                    config.sheet_every_seconds,
                    lambda: self._evaluate(run, f"step-{budget.steps:06d}"),
                ),
                (config.checkpoint.every_seconds, lambda: self._save(run, None)),
            ),
        )

    def _log_step(self, run: TrainingRun, output: StepOutput, steps_per_s: float) -> None:
        decibels = 10 * (4 / output.squared_error.clamp_min(1e-10)).log10()
        self.session.log.write(
            "step",
            arm=self.objective.arm.name,
            step=run.budget.steps,
            seconds=run.budget.now(),
            images_per_s=steps_per_s * self.config.batch_size * self.session.processes,
            loss=float(output.loss.detach()),
            reconstruction=float(output.reconstruction),
            quantizer=float(output.quantizer),
            perceptual=float(output.perceptual),
            batch_psnr_db=float(decibels.median()),
            learning_rate=run.learning_rate,
        )

    def _evaluate(self, run: TrainingRun, name: str) -> float:
        """Mean held-out round-trip PSNR of the averaged weights; logs it and writes a sheet."""
        sheet = self.session.folder / "sheets" / f"{name}.png"
        with run.ema.swapped_in(), torch.compiler.set_stance("force_eager"):
            found = evaluate_round_trip(
                self.objective,
                self.data.held_out,
                sheet if self.session.is_main else None,
            )
        self.session.log.write(
            "evaluation", name=name, arm=self.objective.arm.name, step=run.budget.steps, **found
        )
        return float(found["psnr_db"])

    def _save(self, run: TrainingRun, psnr: float | None) -> None:
        config, folder = self.config, self.session.checkpoint
        save_tokenizer_run(folder, run, self.objective, config.model, config.checkpoint, psnr)
