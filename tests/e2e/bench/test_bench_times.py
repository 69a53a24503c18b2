"""``stepvar bench``: whose time is taken, when, and what it adds up to."""

from pathlib import Path
from statistics import median

import pytest
from bench_cases import bench
from tiny_model import CONFIG

from infinity.pipeline import InfinityPipeline
from stepvar_patch.cost import plan_cost
from stepvar_patch.experiments.bench.models import Models, weight_bytes
from stepvar_patch.experiments.bench.schema import BenchConfig, arms
from stepvar_patch.experiments.loading import load_config
from stepvar_patch.experiments.pruning import policy_request, sampling_settings
from stepvar_patch.policies import POLICIES

pytestmark = pytest.mark.bench


def test_the_numbers_of_the_file_agree_with_each_other(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = bench("pace_s=0.001")
    assert record["rounds_done"] == 3
    assert record["note"] is None
    assert record["model"]["name"] == "tiny"
    assert record["environment"]["torch"]
    assert record["environment"]["gpu"] is None
    assert record["command"] == "stepvar bench b.yaml pace_s=0.001"
    rows = {row["arm"]: row for row in record["rows"]}
    assert list(rows) == ["dense", "balanced", "inline"]
    dense = rows["dense"]
    for row in rows.values():
        assert row["error"] is None
        for mode in ("back_to_back", "paced"):
            timed = row[mode]
            totals = [sample["total_ms"] for sample in timed["samples"]]
            assert timed["n"] == len(totals) == 3
            assert timed["median_ms"] == pytest.approx(median(totals))
            assert (timed["min_ms"], timed["max_ms"]) == (min(totals), max(totals))
            ratio = dense[mode]["median_ms"] / timed["median_ms"]
            assert timed["speedup"] == pytest.approx(ratio, rel=1e-3)
        assert row["flops"]["source"] == "counted"
    tokens = [h * w for h, w in dense["grids"]]
    assert dense["kept_per_scale"] == tokens
    assert dense["back_to_back"]["speedup"] == 1
    last = [round(n * keep) for n, keep in zip(tokens[-4:], (0.6, 0.5, 0.5, 0.5), strict=True)]
    assert rows["balanced"]["kept_per_scale"] == [*tokens[:-4], *last]
    assert rows["inline"]["kept_per_scale"][-2:] == [0, 0]
    assert rows["balanced"]["flops"]["ratio"] == pytest.approx(
        dense["flops"]["per_image"] / rows["balanced"]["flops"]["per_image"]
    )
    assert rows["inline"]["flops"]["ratio"] > rows["balanced"]["flops"]["ratio"] > 1
    assert rows["balanced"]["back_to_back"]["stages_ms"]["restore"] > 0
    out = capsys.readouterr().out
    assert "| balanced | 1 |" in out
    assert "out/b.json" in out


def test_stages_add_up_to_the_call(work: Path) -> None:
    for row in bench("rounds=1")["rows"]:
        timed = row["back_to_back"]
        spent = sum(timed["stages_ms"].values())
        assert spent <= timed["median_ms"]
        assert spent == pytest.approx(timed["median_ms"], rel=0.1, abs=2)
        text_ms = timed["stages_ms"]["text"]
        assert timed["without_text_ms"] == pytest.approx(timed["median_ms"] - text_ms, abs=0.01)
        for name, per_scale in timed["per_scale_ms"].items():
            assert len(per_scale) == len(row["grids"])
            assert sum(per_scale) == pytest.approx(timed["stages_ms"][name], abs=0.01)


def test_counted_operations_are_those_of_the_cost_model(work: Path) -> None:
    record = bench("rounds=1")
    arm = arms(load_config(BenchConfig, Path("b.yaml")))[0]
    request = policy_request(CONFIG, arm)
    settings = sampling_settings(arm, CONFIG, request.schedule)
    policy = POLICIES["dense"]()
    cost = plan_cost(policy, CONFIG, request, settings=settings, text_tokens=5)
    assert record["rows"][0]["flops"]["per_image"] == pytest.approx(cost.flops, rel=0.01)


def test_arms_are_interleaved_and_every_round_starts_one_row_later(work: Path) -> None:
    record = bench()
    order = sorted(
        (sample["position"], sample["round"], row["arm"])
        for row in record["rows"]
        for sample in row["back_to_back"]["samples"]
    )
    names = [arm for _, _, arm in order]
    assert [position for position, _, _ in order] == list(range(9))
    assert [round_ for _, round_, _ in order] == [0] * 3 + [1] * 3 + [2] * 3
    assert [names[i : i + 3] for i in (0, 3, 6)] == [
        ["dense", "balanced", "inline"],
        ["balanced", "inline", "dense"],
        ["inline", "dense", "balanced"],
    ]


def test_further_batch_sizes_take_part_in_fewer_rounds_and_are_not_paced(work: Path) -> None:
    record = bench("batch_sizes=[1,2]", "further_rounds=1", "pace_s=0.001")
    for row in record["rows"]:
        first = row["batch_size"] == 1
        assert row["back_to_back"]["n"] == (3 if first else 1)
        assert (row["paced"] or {}).get("n") == (3 if first else None)


def test_arms_of_one_precision_share_their_weights(work: Path) -> None:
    words = ["arms={dense: {}, plain: {engine: plain}, half: {dtype: bfloat16}}"]
    config = load_config(BenchConfig, Path("b.yaml"), words)
    models = Models(config, InfinityPipeline.from_pretrained)
    dense, plain, half = (models.pipeline(arm) for arm in arms(config))
    assert dense.transformer is plain.transformer is not half.transformer
    assert (dense.engine, plain.engine) == ("auto", "plain")
    assert len(models.opened) == 2
    assert models.weight_bytes() == weight_bytes(dense) + weight_bytes(half)


def test_kernels_of_the_arms_that_are_asked_for(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = bench("rounds=1", "kernels=[balanced]", "batch_sizes=[1,2]")
    rows = {(row["arm"], row["batch_size"]): row["kernels"] for row in record["rows"]}
    found = rows.pop(("balanced", 1))
    assert set(rows.values()) == {None}
    assert found["launches"] > 1000
    times = [kernel["ms"] for kernel in found["top"]]
    assert times == sorted(times, reverse=True)
    assert sum(times) <= found["busy_ms"] + 0.1
    assert any("addmm" in kernel["name"] or "mkldnn" in kernel["name"] for kernel in found["top"])
    assert "Kernels of one draw, balanced, batch 1" in capsys.readouterr().out
