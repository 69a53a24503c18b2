"""Applying a policy to a pipeline and taking it off again."""

import gc
import subprocess
import sys
import weakref

import pytest
import torch

import stepvar_patch
from infinity.config import PRESETS, TransformerConfig
from infinity.errors import UserError
from infinity.pipeline import InfinityPipeline
from infinity.policy import DensePolicy
from infinity.tokenizer.autoencoder import BSQTokenizer
from infinity.transformer.model import InfinityTransformer
from stepvar_patch.patch import apply
from stepvar_patch.policies import OraclePolicy, StepVARPolicy
from stepvar_patch.policies.oracle import draw_with_oracle
from stepvar_patch.rules import ScaleRule
from tests.unit.test_pipeline import CONFIG, LetterEncoder


def pipeline(transformer: TransformerConfig = CONFIG.transformer) -> InfinityPipeline:
    torch.manual_seed(0)
    network = InfinityTransformer(transformer).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return InfinityPipeline(
        config=CONFIG,
        transformer=network,
        tokenizer=BSQTokenizer(CONFIG.tokenizer).eval(),
        text_encoder=LetterEncoder(),
        digest="0" * 64,
        device=torch.device("cpu"),
        dtype=torch.float32,
        max_batch_size=2,
    )


def drawn(pipe: InfinityPipeline) -> torch.Tensor:
    return pipe(["a cat", "a dog"], seed=3, output_type="latent").latents


def test_apply_is_found_at_the_top_without_importing_torch_early() -> None:
    assert stepvar_patch.apply is apply
    with pytest.raises(AttributeError, match="has no attribute 'aply'"):
        stepvar_patch.aply  # noqa: B018
    code = "import sys, stepvar_patch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


A, B = StepVARPolicy(), StepVARPolicy(restore="nearest_change")


def test_removal_restores_exactly() -> None:
    pipe = pipeline()
    original, before = pipe.policy, drawn(pipe)
    weights = [parameter.clone() for parameter in pipe.transformer.parameters()]
    handle = apply(pipe, A)
    assert handle.active
    pruned = drawn(pipe)
    handle.remove()
    handle.remove()
    assert pipe.policy is original
    assert not handle.active
    assert torch.equal(drawn(pipe), before)
    assert not torch.equal(pruned, before)
    assert all(map(torch.equal, weights, pipe.transformer.parameters()))


def test_applying_twice_equals_once() -> None:
    pipe = pipeline()
    original = pipe.policy
    first = apply(pipe, A)
    second = apply(pipe, StepVARPolicy())
    assert second is first
    second.remove()
    assert pipe.policy is original
    with apply(pipe, A):
        with apply(pipe, A):
            pass
        assert pipe.policy == A
    assert pipe.policy is original


def test_an_exception_takes_the_policy_off() -> None:
    pipe = pipeline()
    original = pipe.policy
    with pytest.raises(RuntimeError), apply(pipe, A):
        raise RuntimeError
    assert pipe.policy is original


@pytest.mark.parametrize("first_off", [0, 1])
def test_stacked_policies_come_off_in_any_order(first_off: int) -> None:
    pipe = pipeline()
    original = pipe.policy
    handles = [apply(pipe, A), apply(pipe, B)]
    assert pipe.policy == B
    handles[first_off].remove()
    assert pipe.policy == (B if first_off == 0 else A)
    handles[1 - first_off].remove()
    assert pipe.policy is original


def test_a_patch_keeps_no_pipeline_alive() -> None:
    pipe = pipeline()
    watched = weakref.ref(pipe)
    handle = apply(pipe, A)
    del pipe
    gc.collect()
    assert watched() is None
    handle.remove()


def test_unknown_objects_and_unfitting_settings_are_refused() -> None:
    pipe = pipeline()
    with pytest.raises(UserError, match="got a Linear"):
        apply(torch.nn.Linear(1, 1), A)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="got str"):
        apply(pipe, "stepvar")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="got StepVARPolicy"):
        apply(pipe, StepVARPolicy)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"scales\.-9"):
        apply(pipe, StepVARPolicy(scales={"-9": ScaleRule(keep_ratio=0.5)}))
    assert pipe.policy == DensePolicy()


@pytest.mark.parametrize("name", PRESETS)
def test_every_published_shape_takes_the_patch(name: str) -> None:
    pipe = pipeline()
    pipe.config = PRESETS[name]
    with apply(pipe, A):
        assert pipe.policy == A


def test_the_oracle_draws_twice_and_leaves_the_pipeline_as_it_was() -> None:
    pipe = pipeline()
    oracle = OraclePolicy(restore="nearest_change")
    with apply(pipe, A):
        out = draw_with_oracle(pipe, oracle, ["a cat", "a dog", "an ox"], seed=3, output_type="pt")
        assert pipe.policy == A
    assert len(out.images) == 3
    dense = pipe(["a cat", "a dog", "an ox"], seed=3, output_type="pt")
    assert not torch.equal(out.latents, dense.latents)
    with pytest.raises(UserError, match="needs a seed"):
        draw_with_oracle(pipe, oracle, "a cat")
    with apply(pipe, oracle), pytest.raises(UserError, match="recorded dense run"):
        pipe("a cat", seed=0)
