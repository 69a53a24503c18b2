"""The tokenizer trainer at toy size on the CPU."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_toys import files, squares

from infinity.config import TokenizerConfig
from infinity.errors import UserError
from infinity.schedule import scale_schedule
from infinity.training.checkpoint import load_tensors, read_index
from infinity.training.config import (
    CheckpointConfig,
    OptimizerConfig,
    PerceptualConfig,
    QuantizerArm,
    TrainTokenizerConfig,
)
from infinity.training.tokenizer import run_tokenizer
from infinity.training.tokenizer_checkpoint import load_tokenizer
from stepvar_patch.experiments.loading import load_config

UNIT = QuantizerArm(name="unit", gains=False, straight_through="scales", loss_weight=4.0)
GAINS = QuantizerArm(name="gains", gains=True, straight_through="latent", loss_weight=0.2)
CONFIG = TrainTokenizerConfig(
    output_dir="",
    model=TokenizerConfig(
        codebook_dim=4, patch_size=2, channels=32, channel_multipliers=(1, 1), res_blocks=1
    ),
    resolution="0.06M",
    arms=(GAINS,),
    max_seconds=1e6,
    max_steps=12,
    batch_size=4,
    prefix_scales=(3, 6),
    optimizer=OptimizerConfig(
        learning_rate=2e-3, betas=(0.9, 0.95), weight_decay=0.01, warmup_steps=2
    ),
    log_every=2,
)


def rows(folder: Path, event: str) -> list[dict]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["event"] == event]


@pytest.mark.parametrize(
    "arm", [replace(UNIT, scale_drop=0.3), replace(GAINS, gains=False), GAINS], ids=str
)
def test_loss_falls_and_files_are_written(arm: QuantizerArm, tmp_path: Path) -> None:
    result = run_tokenizer(replace(CONFIG, output_dir=str(tmp_path), arms=(arm,)), squares(32))
    losses = [row["reconstruction"] for row in rows(tmp_path, "step")]
    assert losses[-1] < 0.85 * losses[0]
    assert result.steps == 12
    start = rows(tmp_path, "start")[0]
    assert start["config"]["seed"] == CONFIG.seed
    assert start["config"]["arms"][0]["name"] == arm.name
    assert len(start["code_sha256"]) == 64
    assert "sheets/final.png" in files(tmp_path)
    tokenizer = load_tokenizer(result.folder)
    assert (tokenizer.gains is not None) == arm.gains
    held_out = squares(32).held_out
    grids = scale_schedule(1.0, "0.06M").grids
    decoded = tokenizer.decode(tokenizer.encode(held_out, grids)[1])
    error = (decoded - held_out).square().mean(dim=(1, 2, 3))
    psnr = (10 * (4 / error).log10()).mean().item()
    assert psnr == pytest.approx(result.psnr_db, abs=1e-2)


def test_resumed_run_equals_uninterrupted_one(tmp_path: Path) -> None:
    constant = replace(CONFIG.optimizer, decay_from=1.0)
    for name, steps, resume in [("a", 12, None), ("b1", 7, None), ("b2", 12, "b1")]:
        run_tokenizer(
            replace(
                CONFIG,
                output_dir=str(tmp_path / name),
                max_steps=steps,
                optimizer=constant,
                resume_from=resume and str(tmp_path / resume / "checkpoint"),
            ),
            squares(32),
        )
    for kind in ("raw", "ema", "optimizer"):
        once = load_tensors(tmp_path / "a" / "checkpoint", kind)
        twice = load_tensors(tmp_path / "b2" / "checkpoint", kind)
        assert once.keys() == twice.keys()
        assert all(torch.equal(once[key], twice[key]) for key in once), kind


def test_half_state_is_small_and_can_be_resumed(tmp_path: Path) -> None:
    half = CheckpointConfig(state="half", shard_mib=0.25)
    first = replace(CONFIG, output_dir=str(tmp_path / "1"), max_steps=6, checkpoint=half)
    folder = run_tokenizer(first, squares(32)).folder
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 2
    assert all(shard.stat().st_size <= 2**18 for shard in shards)
    assert not list(folder.glob("optimizer*"))
    second = replace(first, output_dir=str(tmp_path / "2"), max_steps=8, resume_from=str(folder))
    assert run_tokenizer(second, squares(32)).steps == 8
    assert read_index(tmp_path / "2" / "checkpoint")["warm_steps"] == 2


def test_a_new_run_starts_from_averaged_weights_with_a_perceptual_loss(tmp_path: Path) -> None:
    first = run_tokenizer(replace(CONFIG, output_dir=str(tmp_path / "1")), squares(32))
    perceptual = PerceptualConfig(weight=0.5, seconds=1e6, max_steps=25)
    again = replace(
        CONFIG,
        output_dir=str(tmp_path / "2"),
        resume_from=str(first.folder),
        resume="weights",
        perceptual=perceptual,
    )
    assert run_tokenizer(again, squares(32)).steps == 12
    old, new = (rows(tmp_path / name, "step")[0] for name in ("1", "2"))
    assert new["reconstruction"] < 0.9 * old["reconstruction"]
    assert old["perceptual"] == 0 < new["perceptual"]
    (net,) = rows(tmp_path / "2", "caption net")
    assert net["steps"] == 25
    assert net["nats_per_image"] < 0.5 * net["words"] * 0.6931


def test_comparison_keeps_the_first_arm_unless_clearly_beaten(tmp_path: Path) -> None:
    for margin, expected in [(100.0, "unit"), (0.0, None)]:
        config = replace(
            CONFIG,
            output_dir=str(tmp_path / str(margin)),
            arms=(UNIT, GAINS),
            compare_seconds=0.5,
            prefer_margin_db=margin,
            max_steps=40,
        )
        result = run_tokenizer(config, squares(32))
        chosen = rows(tmp_path / str(margin), "chosen")[0]
        first, second = chosen["psnr_db"]
        better = "gains" if second > first else "unit"
        assert chosen["arm"] == result.arm == (expected or better)
        assert result.steps == 40


def test_wrong_image_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="need images of 32 px, the data has 64 px"):
        run_tokenizer(replace(CONFIG, output_dir=str(tmp_path)), squares(64))


def test_more_gradient_levels_than_the_images_halve_are_refused(tmp_path: Path) -> None:
    config = replace(CONFIG, output_dir=str(tmp_path), gradient_levels=6)
    with pytest.raises(
        UserError, match="gradient_levels is 6; allowed for images of 32 px: 1 to 5"
    ):
        run_tokenizer(config, squares(32))


def test_shipped_config_loads_and_names_mistakes() -> None:
    path = Path(__file__).parents[2] / "configs/train/tokenizer.yaml"
    config = load_config(TrainTokenizerConfig, path, ["batch_size=8", "arms.0.name=x"])
    assert (config.batch_size, config.arms[0].name) == (8, "x")
    with pytest.raises(UserError, match=r"(?s)batch_size.*batchsize"):
        load_config(TrainTokenizerConfig, path, ["batch_size=0", "batchsize=3"])


def test_the_decoder_alone_gets_better_on_codes_that_stay(tmp_path: Path) -> None:
    first = run_tokenizer(replace(CONFIG, output_dir=str(tmp_path / "1")), squares(32))
    decoder = replace(
        CONFIG,
        output_dir=str(tmp_path / "2"),
        train="decoder",
        cache_images=70,
        resume_from=str(first.folder),
        resume="weights",
        max_steps=60,
        log_error_weight=0.02,
        corner_weight=4.0,
        gradient_levels=4,
        masking_contrast=0.03,
    )
    second = run_tokenizer(decoder, squares(32))
    assert second.psnr_db > first.psnr_db + 0.3
    before, after = (load_tokenizer(result.folder) for result in (first, second))
    for part, same in [("encoder", True), ("decoder", False), ("quantizer", True)]:
        one, other = (getattr(t, part).state_dict() for t in (before, after))
        assert all(torch.equal(one[key], other[key]) for key in one) == same, part
    assert rows(tmp_path / "2", "cache")[0]["images"] == 70


def test_the_decoder_alone_needs_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train is decoder, which needs resume_from"):
        run_tokenizer(replace(CONFIG, output_dir=str(tmp_path), train="decoder"), squares(32))


def test_shipped_decoder_config_fits_the_tokenizer_config() -> None:
    folder = Path(__file__).parents[2] / "configs/train"
    whole, decoder = (
        load_config(TrainTokenizerConfig, folder / f"{name}.yaml", [])
        for name in ("tokenizer", "decoder")
    )
    assert (decoder.model, decoder.resolution) == (whole.model, whole.resolution)
    assert decoder.arms[0].gains == whole.arms[-1].gains
