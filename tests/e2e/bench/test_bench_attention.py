"""``stepvar bench attention``: every backend against the definition."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from bench_cases import ATTENTION
from tiny_model import CONFIG
from torch import Tensor

from infinity.config import PRESETS
from infinity.ops.attention import AttentionRequest, KeyValues, SdpaAttention, registry
from stepvar_patch.cli import main
from stepvar_patch.experiments.bench.attention_cases import AttentionConfig, cases
from stepvar_patch.experiments.loading import load_config

pytestmark = pytest.mark.bench


def test_attention_backends_agree_with_the_definition_or_say_why_not(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PRESETS, "infinity-2b", CONFIG)
    assert main(["bench", "attention", str(ATTENTION), "device=cpu", "rounds=2", "calls=1"]) == 0
    record = json.loads(Path("outputs/bench/attention.json").read_text())
    tokens = [1, 4, 16, 36, 64, 144, 256]
    found = {(case["scale"], case["kind"]): case for case in record["cases"]}
    assert {si for si, kind in found if kind == "dense"} == set(range(7))
    assert {si for si, kind in found if kind == "pruned"} == {3, 4, 5, 6}
    dense, pruned, ragged = (found[6, kind] for kind in ("dense", "pruned", "ragged"))
    assert (dense["queries"], dense["keys"]) == ([256, 256], [sum(tokens)] * 2)
    assert (pruned["queries"], pruned["keys"]) == ([128, 128], [21 + 22 + 32 + 72 + 128] * 2)
    assert (ragged["queries"], ragged["keys"]) == ([128, 102], [275, 220])
    for case in record["cases"]:
        backends = {entry["backend"]: entry for entry in case["backends"]}
        assert backends["sdpa"]["relative_error"] < 1e-5
        assert (backends["sdpa"]["n"], backends["sdpa"]["reason"]) == (2, None)
        assert backends["sdpa"]["median_ms"] > 0
        assert backends["torch_varlen"]["reason"] == "runs on cuda only, not on cpu"
        assert backends["torch_varlen"]["median_ms"] is None
    out = capsys.readouterr().out
    assert "| scale 6 ragged | 2 × 128 / 102 | 2 × 275 / 220 | sdpa (fastest) |" in out
    assert "- torch_varlen: runs on cuda only, not on cpu" in out


class Wrong:
    """A backend that forgets the last key of every row."""

    name = "wrong"

    def supports(self, request: AttentionRequest) -> str | None:
        return "breaks" if request.ragged else None

    def __call__(self, q: Tensor, kv: KeyValues, **how: Any) -> Tensor:
        shorter = KeyValues(kv.k, kv.v, None, kv.seqused - 1, kv.max_seqlen - 1, kv.uniform)
        return SdpaAttention()(q, shorter, **how)


def test_a_wrong_backend_has_a_large_error(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "infinity-2b", CONFIG)
    monkeypatch.setitem(registry._loaders, "wrong", Wrong)
    words = [str(ATTENTION), "device=cpu", "rounds=1", "scales=[-1]", "kinds=[dense,ragged]"]
    assert main(["bench", "attention", *words]) == 0
    dense, ragged = json.loads(Path("outputs/bench/attention.json").read_text())["cases"]
    errors = {e["backend"]: e["relative_error"] for e in dense["backends"]}
    assert errors["wrong"] > 1e-3 > 1e-5 > errors["sdpa"]
    assert {e["backend"]: e["reason"] for e in ragged["backends"]}["wrong"] == "breaks"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["scales=[13]"], "scales holds 13, but the schedule has 13 scales"),
        (["preset=x"], "preset is 'x'; valid are"),
        (["kinds=[loose]"], "must be 'dense', 'pruned' or 'ragged'"),
        (["height=100"], "height and width must be given together"),
        (["pruning.scales.-20.run=true"], "-20"),
        (["pruning=null", "kinds=[pruned]"], "kinds and pruning leave no call to time"),
    ],
)
def test_mistakes_in_an_attention_file(
    work: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert main(["bench", "attention", str(ATTENTION), "device=cpu", *words]) == 2
    assert told in capsys.readouterr().err


def test_the_shipped_attention_file_is_complete() -> None:
    load_config(AttentionConfig, ATTENTION)
    given = yaml.safe_load(ATTENTION.read_text())
    assert given.keys() == {field.name for field in fields(AttentionConfig)}


@pytest.mark.parametrize(("kv_write", "keys"), [("kept", 321), ("none", 249), ("propagate", 521)])
def test_keys_are_those_that_the_policy_caches_and_sees(kv_write: str, keys: int) -> None:
    """Five dense scales have 121 tokens, the last two 144 and 256, of which half are kept."""
    words = [f"pruning.kv_write={kv_write}", "scales=[-1]", "kinds=[pruned]", "resolution=0.06M"]
    scales = "pruning.scales={'-1': {keep_ratio: 0.5}, '-2': {keep_ratio: 0.5}}"
    config = load_config(AttentionConfig, ATTENTION, [*words, scales])
    (case,) = cases(config)
    assert set(case.keys) == {keys}
