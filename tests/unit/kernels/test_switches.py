"""Where kernels run, and how single ones are switched off."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from infinity.errors import UserError
from infinity.ops.fused import support


def test_where_kernels_run_is_said_in_words() -> None:
    if os.environ.get("TRITON_INTERPRET") != "1":
        assert "triton" in str(support.why_not(torch.device("cpu"))) or "CUDA" in str(
            support.why_not(torch.device("cpu"))
        )


@pytest.fixture
def _forget_switches() -> Iterator[None]:
    support.switched_off.cache_clear()
    yield
    support.switched_off.cache_clear()


@pytest.mark.usefixtures("_forget_switches")
def test_one_kernel_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPVAR_KERNELS_OFF", "rotate, quantise")
    monkeypatch.setattr(support, "why_not", lambda device: None)
    x = torch.zeros(1)
    assert {name for name in support.SWITCHES if not support.usable(x, name)} == {
        "quantise",
        "rotate",
    }


@pytest.mark.usefixtures("_forget_switches")
def test_a_switch_that_names_no_kernel_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPVAR_KERNELS_OFF", "rotate,sampel")
    with pytest.raises(UserError, match=r"names sampel; allowed: .*\bsample\b"):
        support.switched_off()


def test_every_file_of_kernels_with_a_torch_form_has_a_switch() -> None:
    files = {path.stem for path in Path(support.__file__).parent.glob("*.py")}
    # The decoder's kernels are chosen by the engine.
    assert set(support.SWITCHES) == files - {"__init__", "support", "group_norm"}
