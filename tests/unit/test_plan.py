"""Where a run draws, and in which precision."""

import pytest

from stepvar_patch.experiments import plan
from stepvar_patch.experiments.plan import resolve_device


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
