"""Where a run draws, in which precision, and whether its policy does anything."""

import pytest

from infinity.config import PRESETS
from stepvar_patch.experiments import plan
from stepvar_patch.experiments.plan import resolve_device
from stepvar_patch.experiments.problems import parse
from stepvar_patch.experiments.pruning import resolve_pruning
from stepvar_patch.experiments.schema import ImageSettings


@pytest.mark.parametrize(
    ("native", "dtype", "warned"),
    [(False, "bfloat16", True), (True, "bfloat16", False), (False, None, False)],
)
def test_a_cpu_that_only_emulates_bfloat16_is_told_of(
    native: bool,
    dtype: str | None,
    warned: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(plan, "_computes_bfloat16", lambda: native)
    assert resolve_device("cpu", dtype) == ("cpu", dtype or "float32")
    assert ("many times longer" in caplog.text) == warned


@pytest.mark.parametrize(
    ("pruning", "warned"),
    [
        ({"kind": "stepvar", "scales": {}}, True),
        ({"kind": "fastvar", "scales": {"-1": {"keep_ratio": 1.0}}}, True),
        ({"kind": "ldpruning", "scales": {}, "branch_stop": 0.0}, True),
        ({"kind": "skipvar", "scales": {}}, True),
        ({"kind": "ldpruning"}, False),
        ({"kind": "random", "scales": {"-1": {"rows": "cond"}}}, False),
        ({"kind": "stepvar"}, False),
        ({"kind": "dense"}, False),
    ],
)
def test_a_policy_that_leaves_nothing_out_says_so(
    pruning: dict[str, object], warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    resolve_pruning(parse(ImageSettings, {"pruning": pruning}), PRESETS["embedded"])
    assert ("leaves nothing out" in caplog.text) == warned
