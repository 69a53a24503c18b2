"""A call can be forked between two scales, and be told beforehand what its policy asks."""

from functools import cache

import pytest
import torch

from infinity.engine.answers import Answer, Answers, UndecidedError, undecided
from infinity.policy import Decide, PruningPolicy, wait_for
from infinity.sampling.loop import ScaleLoop
from infinity.sampling.noise import PerImageNoise
from infinity.schedule import scale_schedule
from infinity.timing import NO_TIMER
from infinity.transformer.model import InfinityTransformer
from stepvar_patch.policies import LDPruningPolicy, SkipVARPolicy
from stepvar_patch.policies.skipvar import LogisticFit, SkipDecision
from tests.property.policy_cases import CASES
from tests.toy import toy_model, toy_settings, toy_text

IMAGES = 2


@cache
def model() -> InfinityTransformer:
    return toy_model()


def loop_of(policy: PruningPolicy) -> ScaleLoop:
    schedule = scale_schedule(1.0, "0.06M")
    return ScaleLoop(
        model(),
        model().condition(model().with_unconditional(toy_text(model(), (3, 5)))),
        schedule,
        toy_settings(schedule),
        PerImageNoise(range(IMAGES), "cpu"),
        policy,
        images=IMAGES,
        decode=lambda latent: latent[:, :3].tanh(),
    )


def forked(loop: ScaleLoop, decide: Decide = wait_for) -> ScaleLoop:
    return loop.fork(decide=decide, on_scale_end=None, timer=NO_TIMER)


@pytest.mark.parametrize("name", ["stepvar-rows", "sparsevar"])
@torch.inference_mode()
def test_a_call_forked_before_every_scale_ends_alike(name: str) -> None:
    loop = loop_of(CASES[name].policy)
    while not loop.ended:
        loop = forked(loop)
        loop.advance()
    assert torch.equal(loop.latent, loop_of(CASES[name].policy).finish())


def _class(bias: float) -> LogisticFit:
    weights = ((0.0, 0.0), (0.0, 0.0), (0.0, 0.0))
    return LogisticFit(mean=(0, 0), scale=(1, 1), weights=weights, bias=(0, bias, 0))


DECIDING = {
    "ldpruning": LDPruningPolicy(branch_stop=0.4, rungs=8),
    "skipvar": SkipVARPolicy(scales={}, decision=SkipDecision(drop=_class(1), rows=_class(0))),
}


@pytest.mark.parametrize("name", DECIDING)
@torch.inference_mode()
def test_a_call_that_is_cut_short_at_every_question_ends_alike(name: str) -> None:
    straight, loop = loop_of(DECIDING[name]).finish(), loop_of(DECIDING[name])
    told: tuple[Answer, ...] = ()
    questions = 0
    while not loop.ended:
        ahead = forked(loop, Answers(told, undecided))
        try:
            ahead.advance()
        except UndecidedError as question:
            questions += 1
            other = tuple(max(1, answer - 1) for answer in wait_for(question.values))
            forked(loop, Answers((*told, other), wait_for)).finish()
            told = (*told, wait_for(question.values))
        else:
            loop, told = ahead, ()
    assert questions > 0
    assert torch.equal(loop.latent, straight)


def test_answers_are_given_in_order_and_then_asked_for() -> None:
    answers, values = Answers(((1,), (2, 3)), wait_for), torch.tensor([7])
    assert [answers(values) for _ in range(3)] == [(1,), (2, 3), (7,)]
    with pytest.raises(UndecidedError) as question:
        Answers((), undecided)(values)
    assert question.value.values is values
