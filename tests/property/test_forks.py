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
from stepvar_patch.rules import ScaleRule
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


def _always(chosen: int) -> LogisticFit:
    bias = [0.0] * 4
    bias[chosen] = 1.0
    return LogisticFit(mean=(0, 0), scale=(1, 1), weights=((0.0, 0.0),) * 4, bias=tuple(bias))


DECIDING = {
    "ldpruning": LDPruningPolicy(branch_stop=0.4, rungs=8),
    "ldpruning-both-rows": LDPruningPolicy(branch_stop=1e-9),
    "skipvar-echo": SkipVARPolicy(
        scales={"-1": ScaleRule(rows="cond", guidance_echo=0.5)},
        decision=SkipDecision(drop=_always(0), rows=_always(3)),
    ),
}
"""The first keeps few, the second both rows to the end, the third adds what it heard before the
question; what goes another way drops rows that these keep, or keeps rows that these drop.
"""


def other_than(answer: int) -> int:
    return 1 - answer if answer < 2 else answer - 1


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
            other = tuple(other_than(answer) for answer in wait_for(question.values))
            forked(loop, Answers((*told, other), wait_for)).finish()
            told = (*told, wait_for(question.values))
        else:
            loop, told = ahead, ()
    assert questions > 0
    assert torch.equal(loop.latent, straight)


@torch.inference_mode()
def test_an_ended_call_goes_no_further() -> None:
    loop = loop_of(LDPruningPolicy())
    loop.ended = True
    with pytest.raises(ValueError, match="has ended"):
        loop.advance()


def test_answers_are_given_in_order_and_then_asked_for() -> None:
    answers, values = Answers(((1,), (2, 3)), wait_for), torch.tensor([7])
    assert [answers(values) for _ in range(3)] == [(1,), (2, 3), (7,)]
    with pytest.raises(UndecidedError) as question:
        Answers((), undecided)(values)
    assert question.value.values is values
