"""The comparison of quantiser arms that a tokenizer run may start with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from infinity.training.config import QuantizerArm
from infinity.training.run import TrainingRun
from infinity.training.tokenizer_objective import TokenizerObjective


@dataclass(frozen=True)
class Candidate:
    """An arm after its share of the comparison.

    Attributes:
        arm: how it quantises.
        run: its optimiser, average and budget; to be continued if it is chosen.
        psnr_db: mean held-out round-trip PSNR; higher is better.
        state: the objective's weights and gains at that moment.
    """

    arm: QuantizerArm
    run: TrainingRun
    psnr_db: float
    state: dict[str, Tensor]


def compare_arms(
    objective: TokenizerObjective,
    arms: Sequence[QuantizerArm],
    attempt: Callable[[QuantizerArm], tuple[TrainingRun, float]],
) -> list[Candidate]:
    """What became of every arm; all start from the weights that the objective holds now.

    Args:
        objective: the one model that all arms are trained on.
        arms: to compare.
        attempt: trains the objective under an arm for a while; its run and the PSNR reached, in dB.
    """
    initial = _state(objective)
    candidates = []
    for arm in arms:
        objective.load_state_dict(initial)
        run, psnr_db = attempt(arm)
        candidates.append(Candidate(arm, run, psnr_db, _state(objective)))
    return candidates


def choose(candidates: Sequence[Candidate], margin_db: float) -> Candidate:
    """The first candidate, unless the best of the others beats it by more than ``margin_db``.

    Args:
        candidates: at least two, the default choice first.
        margin_db: PSNR in dB.
    """
    first, *others = candidates
    best = max(others, key=lambda candidate: candidate.psnr_db)
    return best if best.psnr_db > first.psnr_db + margin_db else first


def _state(objective: TokenizerObjective) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in objective.state_dict().items()}
