"""The runs that SkipVAR's decision is fitted on, on a tiny model."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from infinity.pipeline import InfinityPipeline
from infinity.policy import DensePolicy
from stepvar_patch.cli import main
from stepvar_patch.policies.skipvar import SkipVARPolicy
from stepvar_patch.policies.skipvar_fit import collect
from stepvar_patch.rules import ScaleRule


def closeness(picture: Tensor, reference: Tensor) -> float:
    return -float((picture - reference).abs().mean())


def test_what_is_collected_is_what_the_pruned_runs_draw(model: Path) -> None:
    pipeline = InfinityPipeline.from_pretrained(str(model), device="cpu")
    prompts, seeds = ["a red apple", "a blue car"], [3, 4]

    def drawn(index: int, rule: ScaleRule, last: int) -> Tensor:
        policy = SkipVARPolicy(scales={str(-k): rule for k in range(1, last + 1)})
        pipeline.policy = policy
        try:
            return pipeline(prompts[index], seed=seeds[index], output_type="pt").images[0]
        finally:
            pipeline.policy = dense

    dense = pipeline.policy
    assert isinstance(dense, DensePolicy)
    runs = collect(pipeline, prompts, seeds, closeness, after_scale=-4, preview_share=1 / 16)
    assert pipeline.policy is dense
    assert runs.features.shape == (2, 2)
    assert torch.isfinite(runs.features).all()
    for index in range(2):
        whole = drawn(index, ScaleRule(), 0)
        for found, rule in (
            (runs.drop_similarity, ScaleRule(run=False)),
            (runs.rows_similarity, ScaleRule(rows="cond")),
        ):
            expected = [closeness(drawn(index, rule, last), whole) for last in (1, 2, 3)]
            assert max(expected) < 0
            assert found[index].tolist() == pytest.approx(expected, abs=1e-5)
    decision = runs.decision(float(runs.drop_similarity.median()), preview_share=1 / 16)
    assert (decision.after_scale, decision.preview_share) == (-4, 1 / 16)


def test_the_command_writes_a_pruning_file_that_draws(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("a red apple\na blue car\n")
    (tmp_path / "c.yaml").write_text(f"model: {model}\nprompts: p.txt\noutput: out\n")
    words = ["fit-skipvar", "c.yaml", "aspect_ratio=1.5", "--ssim", "0.2", "--output", "fit.yaml"]
    assert main([*words, "--preview-share", "0.0625", "--json"]) == 0
    fitted = json.loads(capsys.readouterr().out)
    assert fitted["runs"] == sum(fitted["drop_labels"]) == sum(fitted["rows_labels"]) == 2
    assert main(["generate", "c.yaml", "aspect_ratio=1.5", "pruning=fit.yaml"]) == 0
    assert main([*words, "--after-scale", "-20"]) == 2
    assert "after_scale is -20" in capsys.readouterr().err
    for place, told in (("out", "out is a folder; give a file"), ("/proc/x", "cannot write into")):
        assert main([*words[:-1], place]) == 2
        assert told in capsys.readouterr().err
    assert main([*words, "pruning=fit.yaml"]) == 2
