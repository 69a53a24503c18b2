"""What the shipped policies save, against the figures of the specification."""

from pathlib import Path

import pytest

from infinity.config import PRESETS
from stepvar_patch.experiments.dry_run import dry_run
from stepvar_patch.experiments.loading import load_config
from stepvar_patch.experiments.schema import GenerateConfig

CONFIGS = Path(__file__).parents[2] / "configs"


def load(name: str, *words: str) -> GenerateConfig:
    pruning = f"pruning={CONFIGS}/pruning/{name}.yaml"
    return load_config(GenerateConfig, CONFIGS / "generate.yaml", [pruning, *words])


@pytest.mark.parametrize(
    ("name", "speedups"),
    [
        ("stepvar_safe", (1.56, 1.50)),
        ("stepvar_balanced", (2.00, 1.89)),
        ("stepvar_fast", (2.67, 2.49)),
        ("stepvar_cfgstop_balanced", (3.07, 2.88)),
        ("stepvar_cfgstop_fast", (3.87, 3.56)),
        ("fastvar", (4.24, 3.94)),
        ("sparsevar", (2.00, 1.89)),
    ],
)
def test_the_cost_model_agrees_with_the_figures_of_the_specification(
    name: str, speedups: tuple[float, float]
) -> None:
    for preset, expected in zip(("infinity-2b", "infinity-8b"), speedups, strict=True):
        found = dry_run(load(name), PRESETS[preset], "cpu").speedup
        assert found == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("aspect_ratio", [0.333, 1.0, 2.5])
@pytest.mark.parametrize("name", ["stepvar_balanced", "fastvar_allscales", "lattice"])
def test_a_target_is_reached_at_every_shape(name: str, aspect_ratio: float) -> None:
    words = ["pruning.target_speedup=1.5", f"aspect_ratio={aspect_ratio}"]
    found = dry_run(load(name, *words), PRESETS["infinity-2b"], "cpu").speedup
    assert found == pytest.approx(1.5, rel=0.01)


def test_a_plan_that_depends_on_the_picture_is_said_to() -> None:
    run = dry_run(load("ldpruning"), PRESETS["infinity-2b"], "cpu")
    assert run.flops is None
    assert "cannot be told beforehand" in run.note
    assert [line.flops for line in run.scales] == [line.dense_flops for line in run.scales]
