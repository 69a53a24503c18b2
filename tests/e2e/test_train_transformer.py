"""The transformer trainer at toy size on the CPU."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_toys import WordEncoder, files, squares

from infinity.config import TokenizerConfig, TransformerConfig
from infinity.errors import UserError
from infinity.training.checkpoint import load_tensors, read_index
from infinity.training.config import (
    AspectShare,
    CheckpointConfig,
    OptimizerConfig,
    PhaseConfig,
    QuantizerArm,
    SelfCorrectionConfig,
    TrainTokenizerConfig,
    TrainTransformerConfig,
)
from infinity.training.tokenizer import run_tokenizer
from infinity.training.transformer import TransformerResult, run_transformer
from infinity.transformer.model import InfinityTransformer
from stepvar_patch.experiments.loading import load_config

PHASE = PhaseConfig(scales=4, batch_size=8, max_seconds=1e6, max_steps=10, decay=False)
CONFIG = TrainTransformerConfig(
    output_dir="",
    tokenizer_dir="",
    model=TransformerConfig(
        depth=2,
        width=64,
        heads=2,
        block_chunks=1,
        codebook_dim=4,
        text_width=128,
        text_max_tokens=8,
        rope_reference="0.06M",
    ),
    resolution="0.06M",
    cache_images=32,
    phases=(PHASE,),
    optimizer=OptimizerConfig(
        learning_rate=3e-3, betas=(0.9, 0.96), weight_decay=0.05, warmup_steps=2
    ),
    ema_window=4,
    log_every=1,
)


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    config = TrainTokenizerConfig(
        output_dir=str(folder),
        model=TokenizerConfig(
            codebook_dim=4, patch_size=2, channels=32, channel_multipliers=(1, 1), res_blocks=1
        ),
        resolution="0.06M",
        arms=(QuantizerArm(name="g", gains=True, straight_through="latent", loss_weight=0.2),),
        max_seconds=1e6,
        max_steps=10,
        batch_size=4,
        prefix_scales=(3, 6),
        optimizer=OptimizerConfig(learning_rate=2e-3, betas=(0.9, 0.95), weight_decay=0.0),
    )
    return str(run_tokenizer(config, squares(32)).folder)


def train(config: TrainTransformerConfig, folder: Path, tokenizer_dir: str) -> TransformerResult:
    config = replace(config, output_dir=str(folder), tokenizer_dir=tokenizer_dir)
    return run_transformer(config, squares(32), WordEncoder())


def rows(folder: Path, event: str) -> list[dict]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["event"] == event]


def test_two_phases_learn_and_leave_files(tmp_path: Path, tokenizer_dir: str) -> None:
    full = replace(PHASE, scales=7, batch_size=4, max_steps=6, decay=True)
    config = replace(
        CONFIG, phases=(replace(PHASE, max_steps=50), full), sheet_prompts=("a red square",) * 3
    )
    result = train(config, tmp_path, tokenizer_dir)
    assert result.steps == (50, 6)
    assert rows(tmp_path, "start")[0]["config"]["phases"][1]["max_steps"] == 6
    steps = rows(tmp_path, "step")
    first = [row["loss"] for row in steps if row["phase"] == 0]
    assert sum(first[-5:]) < 0.85 * sum(first[:5])
    assert {len(row["bit_accuracies"]) for row in steps} == {4, 7}
    assert steps[-1]["learning_rate"] < 0.5 * steps[0]["learning_rate"]
    assert {"sheets/phase-0.png", "sheets/phase-1.png", "log.jsonl"} <= files(tmp_path)
    index = read_index(tmp_path / "checkpoint")
    assert (index["phase"], index["steps"], index["ema_steps"]) == (1, 6, 6)
    model = InfinityTransformer(config.model)
    for kind in ("raw", "ema"):
        stored = load_tensors(tmp_path / "checkpoint", kind)
        missing, unexpected = model.load_state_dict(stored, strict=False)
        assert not unexpected
        assert all(key.endswith("zero_k_bias") for key in missing)


@pytest.mark.parametrize("per", ["scale", "image"])
def test_resumed_run_equals_uninterrupted_one(per: str, tmp_path: Path, tokenizer_dir: str) -> None:
    config = replace(CONFIG, self_correction=SelfCorrectionConfig(per=per))  # type: ignore[arg-type]
    train(config, tmp_path / "once", tokenizer_dir)
    half_way = replace(config, phases=(replace(PHASE, max_steps=6),))
    train(half_way, tmp_path / "half", tokenizer_dir)
    resumed = replace(config, resume_from=str(tmp_path / "half" / "checkpoint"))
    train(resumed, tmp_path / "twice", tokenizer_dir)
    for kind in ("raw", "ema", "optimizer"):
        once = load_tensors(tmp_path / "once" / "checkpoint", kind)
        twice = load_tensors(tmp_path / "twice" / "checkpoint", kind)
        assert once.keys() == twice.keys()
        assert all(torch.equal(once[key], twice[key]) for key in once), kind


def test_half_precision_weights_start_a_new_run(tmp_path: Path, tokenizer_dir: str) -> None:
    half = CheckpointConfig(state="half", shard_mib=0.25)
    first = replace(CONFIG, checkpoint=half, phases=(replace(PHASE, max_steps=30),))
    folder = train(first, tmp_path / "1", tokenizer_dir).folder
    assert all(f.stat().st_size <= 2**18 for f in folder.glob("*.safetensors"))
    again = replace(CONFIG, resume_from=str(folder), resume="weights", seed=1)
    assert train(again, tmp_path / "2", tokenizer_dir).steps == (10,)
    begun, fresh = (rows(tmp_path / name, "step")[0]["loss"] for name in ("2", "1"))
    assert begun < 0.9 * fresh


def test_pictures_of_several_shapes_share_a_phase(tmp_path: Path, tokenizer_dir: str) -> None:
    shapes = (AspectShare(ratio=1.0, share=1.0), AspectShare(ratio=0.75, share=3.0))
    phase = replace(PHASE, scales=7, aspect_ratios=shapes, max_steps=12)
    train(replace(CONFIG, phases=(phase,)), tmp_path, tokenizer_dir)
    assert {row["aspect_ratio"]: row["images"] for row in rows(tmp_path, "cache")} == {
        1.0: 8,
        0.75: 24,
    }
    drawn = [row["aspect_ratio"] for row in rows(tmp_path, "step")]
    assert set(drawn) == {1.0, 0.75}
    assert drawn.count(0.75) > drawn.count(1.0)


def test_average_follows_the_weights(tmp_path: Path, tokenizer_dir: str) -> None:
    config = replace(CONFIG, phases=(replace(PHASE, max_steps=1),))
    folder = train(config, tmp_path / "1", tokenizer_dir).folder
    raw, ema = load_tensors(folder, "raw"), load_tensors(folder, "ema")
    assert all(torch.equal(raw[key], ema[key]) for key in raw)
    second = replace(CONFIG, phases=(replace(PHASE, max_steps=2),), resume_from=str(folder))
    later = train(second, tmp_path / "2", tokenizer_dir).folder
    raw2, ema2 = load_tensors(later, "raw"), load_tensors(later, "ema")
    for key in raw:
        torch.testing.assert_close(ema2[key], (raw[key] + raw2[key]) / 2)


def test_mistakes_are_refused(tmp_path: Path, tokenizer_dir: str) -> None:
    with pytest.raises(UserError, match=r"8 scales asked for, resolution 0\.06M has 7"):
        train(replace(CONFIG, phases=(replace(PHASE, scales=8),)), tmp_path, tokenizer_dir)
    with pytest.raises(UserError, match="no training checkpoint here"):
        train(CONFIG, tmp_path, str(tmp_path))
    with pytest.raises(UserError, match="holds no transformer run"):
        train(replace(CONFIG, resume_from=tokenizer_dir), tmp_path, tokenizer_dir)


def test_shipped_config_loads() -> None:
    path = Path(__file__).parents[2] / "configs/train/transformer.yaml"
    config = load_config(TrainTransformerConfig, path, ["phases.0.scales=6"])
    assert [phase.scales for phase in config.phases] == [6, 10]
