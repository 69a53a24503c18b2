"""Three training steps on fixed batches, which the processes of a launch divide among them.

Leaves the first step's gradients and the last weights of every rank in the folder given.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save_file
from test_train_transformer import CONFIG
from torch import Tensor
from training_toys import Squares, WordEncoder, squares

from infinity.training.budget import Budget
from infinity.training.initialize import decays
from infinity.training.run import TrainingRun
from infinity.training.source import TrainingData
from infinity.training.teacher_forcing import sequence_plan
from infinity.training.transformer import TransformerTrainer

BATCH = 8


def steps(tokenizer_dir: str, folder: Path) -> None:
    toys = squares(32)
    data = TrainingData(lambda seed, canvas: Squares((32, 32), 1), toys.held_out)
    images = CONFIG.cache_images * int(os.environ.get("WORLD_SIZE", "1"))
    config = replace(
        CONFIG, output_dir=str(folder), tokenizer_dir=tokenizer_dir, cache_images=images
    )
    trainer = TransformerTrainer(config, data, WordEncoder())
    accelerator = trainer.session.accelerator
    rank, ranks = trainer.batches.rank, trainer.batches.processes
    batches = replace(trainer.batches, rank=0, processes=1)
    optimizer = replace(config.optimizer, clip_norm=1e9)
    run = TrainingRun(trainer.model, accelerator, optimizer, decays, 4, Budget(9, 1e6))
    plan = sequence_plan(
        trainer.schedules[1.0], 4, config.model, config.scale_weights, accelerator.device
    )
    gradients: dict[str, Tensor] = {}
    update = run.optimizer.step

    def keep_gradients() -> None:
        if not gradients:
            named = trainer.model.named_parameters()
            gradients.update({key: p.grad.clone() for key, p in named if p.grad is not None})
        update()

    run.optimizer.step = keep_gradients  # type: ignore[method-assign]
    for step in range(3):
        _, whole = batches.draw(0, replace(config.phases[0], batch_size=BATCH), step)
        output = trainer.objective(*(part[rank::ranks] for part in whole), plan)
        run.step(output.loss, 0.0)
    save_file(gradients, folder / f"gradients-{ranks}-{rank}.safetensors")
    save_file(
        {key: p.detach().clone() for key, p in trainer.model.named_parameters()},
        folder / f"weights-{ranks}-{rank}.safetensors",
    )


if __name__ == "__main__":
    steps(sys.argv[1], Path(sys.argv[2]))
