"""``stepvar bench`` through the real command line, on a tiny model and on random weights."""

import json
from dataclasses import fields, replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import yaml
from tiny_model import CONFIG, REPOSITORY
from torch import Tensor

from infinity.config import PRESETS, TextEncoderConfig
from infinity.ops.attention import AttentionRequest, KeyValues, SdpaAttention, registry
from infinity.pipeline import InfinityPipeline
from stepvar_patch.cli import main
from stepvar_patch.cost import plan_cost
from stepvar_patch.experiments.bench import random_model
from stepvar_patch.experiments.bench.attention_cases import AttentionConfig
from stepvar_patch.experiments.bench.models import Models, weight_bytes
from stepvar_patch.experiments.bench.precision import PrecisionConfig
from stepvar_patch.experiments.bench.record import Row
from stepvar_patch.experiments.bench.row import Drawer, Sample
from stepvar_patch.experiments.bench.schema import Arm, BenchConfig, arms
from stepvar_patch.experiments.loading import load_config
from stepvar_patch.experiments.pruning import policy_request, resolve_pruning, sampling_settings
from stepvar_patch.policies import POLICIES

FILES = sorted((REPOSITORY / "configs" / "bench").glob("*.yaml"))
ATTENTION = REPOSITORY / "configs" / "bench" / "attention.yaml"
PRECISION = REPOSITORY / "configs" / "bench" / "precision.yaml"
BALANCED = REPOSITORY / "configs" / "pruning" / "stepvar_balanced.yaml"

pytestmark = pytest.mark.bench


@pytest.fixture
def work(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "b.yaml").write_text(
        f"weights: {model}\noutput: out/b.json\ndevice: cpu\nwarmup: 1\nrounds: 3\n"
        "baseline: dense\narms:\n  dense: {}\n"
        f"  balanced: {{pruning: {BALANCED}}}\n"
        "  inline: {pruning: {kind: fastvar}}\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bench(*words: str) -> dict[str, Any]:
    assert main(["bench", "b.yaml", *words]) == 0
    return json.loads(Path("out/b.json").read_text())


@pytest.mark.parametrize("path", sorted({*FILES} - {ATTENTION, PRECISION}), ids=lambda p: p.stem)
def test_every_shipped_file_is_valid_and_its_policies_fit(path: Path) -> None:
    config = load_config(BenchConfig, path)
    given = yaml.safe_load(path.read_text())
    assert given.keys() == {field.name for field in fields(BenchConfig)}
    shape = PRESETS[config.preset or "embedded"]
    kinds = {arm.label: resolve_pruning(arm, shape) for arm in arms(config)}
    assert kinds[config.baseline] is None
    assert any(policy is not None for policy in kinds.values())


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


def test_an_arm_that_cannot_run_says_why_and_the_others_go_on(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = bench("arms.inline.attention=flash_attn", "arms.balanced.pruning.scales.-9.run=true")
    rows = {row["arm"]: row for row in record["rows"]}
    assert "attention=flash_attn: " in rows["inline"]["error"]
    assert "-9" in rows["balanced"]["error"]
    assert rows["inline"]["back_to_back"] is None
    assert rows["dense"]["back_to_back"]["n"] == 3
    out = capsys.readouterr().out
    assert "Arms that do not run:" in out
    assert "- inline, batch 1: attention=flash_attn" in out
    assert main(["bench", "b.yaml", "attention=flash_attn"]) == 2
    assert "no arm could run" in capsys.readouterr().err


def test_an_arm_that_fails_later_keeps_what_it_has(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed, seen = Drawer.timed, []

    def breaks(self: Drawer, round_: int, position: int) -> Any:
        seen.append(json.loads(Path("out/b.json").read_text())["rounds_done"])
        if self.arm.label == "inline" and round_ == 2:
            raise RuntimeError("CUDA error: out of luck\nmore")
        return timed(self, round_, position)

    monkeypatch.setattr(Drawer, "timed", breaks)
    rows = {row["arm"]: row for row in bench()["rows"]}
    assert rows["inline"]["error"] == "RuntimeError: CUDA error: out of luck"
    assert rows["inline"]["back_to_back"]["n"] == 2
    assert rows["balanced"]["back_to_back"]["n"] == 3
    assert seen == [0] * 3 + [1] * 3 + [2] * 3, "the file is written after every round"


def test_random_weights_batches_and_resolution(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PRESETS, "infinity-125m", CONFIG)
    words = ["weights=random", "preset=infinity-125m", "rounds=1", "batch_sizes=[1,3]"]
    words.append("arms={dense: {}}")
    record = bench(*words, "text_tokens=9", "resolution=0.25M", "dtype=bfloat16")
    assert "mean nothing" in record["note"]
    assert "mean nothing" in capsys.readouterr().out
    assert [(row["arm"], row["batch_size"]) for row in record["rows"]] == [
        ("dense", 1),
        ("dense", 3),
    ]
    one, three = record["rows"]
    assert (one["dtype"], one["picture_px"], len(one["grids"])) == ("bfloat16", [64, 64], 10)
    assert one["flops"]["per_image"] == pytest.approx(three["flops"]["per_image"], rel=1e-3)
    assert three["back_to_back"]["per_image_ms"] == pytest.approx(
        three["back_to_back"]["median_ms"] / 3, rel=1e-3
    )


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


def test_a_random_text_encoder_is_run_and_timed(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["weights=random", "preset=infinity-125m", "text_encoder=random", "rounds=1"]
    monkeypatch.setitem(PRESETS, "infinity-125m", CONFIG)
    assert main(["bench", "b.yaml", *words]) == 2
    assert "stands for flan-T5-XL, which this preset does not use" in capsys.readouterr().err
    text = TextEncoderConfig(kind="t5", width=384, max_tokens=64)
    monkeypatch.setitem(PRESETS, "infinity-125m", replace(CONFIG, text_encoder=text))
    small = {"d_model": 384, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    monkeypatch.setattr(random_model, "T5_XL", {**random_model.T5_XL, **small})
    record = bench(*words, "arms={dense: {}}")
    assert record["rows"][0]["back_to_back"]["stages_ms"]["text"] > 0
    plain = bench(*words, "arms={dense: {}}", "text_encoder=null")
    assert record["model"]["weights_mib"] > plain["model"]["weights_mib"] + 40


def test_a_fresh_process_draws_the_first_images(work: Path) -> None:
    words = ["rounds=1", "arms={dense: {}, other: {dtype: bfloat16}, third: {}}"]
    record = bench(*words, "first_image=[dense, other]")
    assert record["rows"][2]["first_image"] is None
    for row in record["rows"][:2]:
        first = row["first_image"]
        times = ("start_ms", "load_ms", "first_ms", "second_ms", "third_ms")
        assert min(first[name] for name in times) > 0
        assert first["weights_mib"] > 0
    assert "break_even_images" not in record["rows"][0]["first_image"]
    assert "break_even_images" in record["rows"][1]["first_image"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["baseline=dens"], "baseline names 'dens'; did you mean 'dense'?"),
        (["kernels=[inlin]"], "kernels names 'inlin'; did you mean 'inline'?"),
        (["first_image=[inlin]"], "first_image names 'inlin'; did you mean 'inline'?"),
        (["weights=random"], "preset belongs to weights=random"),
        (["weights=random", "preset=infinity-3b"], "preset is 'infinity-3b'; did you mean"),
        (
            ["weights=random", "preset=infinity-2b", "text_encoder=t5"],
            "text_encoder is 't5'; allowed with weights=random: random or null",
        ),
        (["weights=none"], "weights: none does not exist"),
        (["arms.balanced.dtype=float16"], "arms.balanced.dtype = 'float16' must be"),
        (["arms.balanced.prunning=x"], "arms.balanced.prunning = 'x' is an unknown key"),
        (["arms.balanced.pruning=none.yaml"], "cannot read none.yaml"),
        (["arms.balanced.pruning.scales.-1.keep_ratio=2"], "keep_ratio = 2 must be less than"),
        (["rounds=0"], "rounds = 0 must be greater than or equal to 1"),
        (["aspect_ratio=1", "arms.dense={height: 32, width: 32}"], "arms.dense: aspect_ratio and"),
    ],
)
def test_each_mistake_is_told_with_its_place_and_code_2(
    work: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert main(["bench", "b.yaml", *words]) == 2
    assert told in capsys.readouterr().err
    assert not Path("out/b.json").exists()


def row(load_ms: float, first_ms: float, later_ms: float) -> Row:
    made = Row(arm=Arm(label="x"), batch_size=1, about={"grids": []})
    made.first_image = {"load_ms": load_ms, "first_ms": first_ms}
    made.samples["back_to_back"] = [
        Sample(round=0, position=0, total_ms=later_ms, stages={("text", None): 1.0})
    ]
    return made


@pytest.mark.parametrize(
    ("load_ms", "first_ms", "later_ms", "images"),
    [
        (1000, 2900, 300, 5),  # 2000 ms late, 500 ms gained with every further image
        (1000, 2901, 300, 6),
        (2000, 1900, 300, 5),
        (900, 900, 300, 1),
        (1000, 1000, 800, None),
    ],
)
def test_break_even_is_where_the_slower_start_is_made_good(
    load_ms: float, first_ms: float, later_ms: float, images: int | None
) -> None:
    eager = row(1000, 900, 800)
    first = row(load_ms, first_ms, later_ms).to_json(eager)["first_image"]
    assert first["break_even_images"] == images


def test_a_second_draw_that_is_recorded_delays_the_break_even() -> None:
    eager, recorded = row(1000, 900, 800), row(1000, 900, 300)
    assert recorded.first_image is not None
    recorded.first_image["second_ms"] = 1801.0  # 1001 ms more than the baseline's, 500 ms a draw
    first = recorded.to_json(eager)["first_image"]
    assert first["break_even_images"] == 5


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


def test_what_a_precision_changes_under_the_same_and_under_its_own_history(
    work: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"weights={model}", "images=3", "batch_size=2", "device=cpu", "output=out/p.json"]
    arms = "arms={exact: {dtype: float32}, again: {dtype: float32}, half: {dtype: bfloat16}, "
    arms += "fp8: {fp8: true}, more: {dtype: bfloat16, against: [exact, half]}}"
    assert main(["bench", "precision", str(PRECISION), *words, arms]) == 0
    record = json.loads(Path("out/p.json").read_text())
    found = {(pair["arm"], pair["against"]): pair for pair in record["pairs"]}
    assert list(found) == [
        *(("again", "exact"), ("half", "exact"), ("more", "exact"), ("more", "half")),
    ]
    for equal in (found["again", "exact"], found["more", "half"]):
        assert equal["images"] == 3
        assert equal["same_history"]["logit_error"] == 0
        assert equal["own_history"]["bits_per_scale"] == [1.0] * 7
        assert equal["own_history"]["psnr_db"]["value"] == 100
    half = found["half", "exact"]
    errors = half["same_history"]["logit_error_per_scale"]
    assert 1e-4 < min(errors) <= half["same_history"]["logit_error"] <= max(errors) < 0.1
    assert half["same_history"]["bits"]["value"] > half["own_history"]["bits_last"]["value"] > 0.5
    assert "fp8 needs engine" in record["not_run"]["fp8"]
    assert record["environment"]["torch"]
    assert "| half against exact |" in capsys.readouterr().out


def test_an_arm_is_compared_with_earlier_ones(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_config(PrecisionConfig, PRECISION)
    given = yaml.safe_load(PRECISION.read_text())
    assert given.keys() == {field.name for field in fields(PrecisionConfig)}
    assert main(["bench", "precision", str(PRECISION), "arms.bfloat16.against=[fp8]"]) == 2
    assert "arms.bfloat16.against names 'fp8'" in capsys.readouterr().err
