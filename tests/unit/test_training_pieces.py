"""Clock, learning rate, average, shards and corruption of the training loop."""

import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from infinity.errors import UserError
from infinity.training.budget import Budget, learning_rate
from infinity.training.checkpoint import load_tensors, save_tensors
from infinity.training.config import OptimizerConfig, SelfCorrectionConfig
from infinity.training.ema import ExponentialMovingAverage
from infinity.training.flip_bits import flip_bits
from infinity.training.reconstruction_loss import (
    LossWeights,
    gradient_l1,
    masking_weights,
    psnr_db,
    reconstruction_loss,
)

OPTIMIZER = OptimizerConfig(
    learning_rate=1.0, betas=(0.9, 0.95), weight_decay=0.0, warmup_steps=4, decay_from=0.5
)


def test_learning_rate_warms_up_holds_and_falls() -> None:
    assert [learning_rate(OPTIMIZER, step, 0.0) for step in (0, 1, 3, 9)] == [0.25, 0.5, 1.0, 1.0]
    assert learning_rate(OPTIMIZER, 9, 0.5) == 1.0
    assert learning_rate(OPTIMIZER, 9, 0.75) == pytest.approx(0.51)
    assert learning_rate(OPTIMIZER, 9, 1.0) == pytest.approx(0.02)


def test_budget_counts_only_while_running(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    budget = Budget(1000, 50.0, steps=10, seconds=5.0, deadline=140.0)
    now[0] = 120.0
    assert budget.now() == 5.0
    budget.start()
    assert budget.max_seconds == 25.0
    now[0] = 130.0
    budget.pause()
    now[0] = 135.0
    assert (budget.seconds, budget.now()) == (15.0, 15.0)
    assert budget.progress == pytest.approx(0.6)
    assert budget.spent(15.0)
    assert not budget.spent()


def test_average_is_even_at_first_and_exponential_later() -> None:
    model = nn.Linear(1, 1, bias=False)
    ema = ExponentialMovingAverage(model, window=3)
    seen = []
    for value in (0.0, 6.0, 3.0, 9.0):
        nn.init.constant_(model.weight, value)
        ema.update()
        seen.append(ema.average["weight"].item())
    assert seen == pytest.approx([0.0, 3.0, 3.0, 5.0])
    with ema.swapped_in():
        assert model.weight.item() == pytest.approx(5.0)
    assert model.weight.item() == 9.0
    ema.restart()
    ema.update()
    assert ema.average["weight"].item() == 9.0


def test_shards_respect_the_limit_and_replace_older_ones(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.full((64, 1024), float(i)) for i in range(6)}
    files = save_tensors(tmp_path, "raw", tensors, shard_mib=0.6, half=False)
    assert len(files) == 3
    assert max(f.stat().st_size for f in tmp_path.iterdir()) <= 0.6 * 2**20
    files = save_tensors(tmp_path, "raw", tensors, shard_mib=0.6, half=True)
    assert len(files) == 2
    assert {f.name for f in tmp_path.iterdir()} == set(files)
    back = load_tensors(tmp_path, "raw")
    assert all(torch.equal(back[key].float(), value) for key, value in tensors.items())
    assert load_file(tmp_path / files[0])["t0"].dtype == torch.float16
    (tmp_path / files[1]).unlink()
    with pytest.raises(UserError, match="1 of 2 shards of raw"):
        load_tensors(tmp_path, "raw")


@pytest.mark.parametrize(("per", "groups"), [("scale", (1, 3)), ("image", (400, 1))])
def test_flips_follow_their_rule(per: str, groups: tuple[int, int]) -> None:
    config = SelfCorrectionConfig(strength=0.4, per=per, clean=0.25)  # type: ignore[arg-type]
    shares = []
    for seed in range(1 if per == "image" else 60):
        flip = flip_bits(config, 400, 3, torch.Generator().manual_seed(seed))
        bits = torch.zeros(400, 8, 8, 4, dtype=torch.bool)
        flipped = torch.stack([flip(scale, bits).float().mean((1, 2, 3)) for scale in range(3)], 1)
        shares.append(flipped.mean(0) if per == "scale" else flipped.mean(1))
    share = torch.cat(shares)
    assert (share == 0).float().mean().item() == pytest.approx(0.25, abs=0.1)
    assert share.max() < 0.45
    assert share[share > 0].mean().item() == pytest.approx(0.2, abs=0.04)


def test_reconstruction_measures() -> None:
    image = torch.zeros(1, 3, 16, 16)
    assert psnr_db(image + 0.2, image).item() == pytest.approx(20.0, abs=1e-4)
    assert gradient_l1(torch.full_like(image, 0.7)).item() == 0
    ramp = image + torch.arange(16.0)
    assert gradient_l1(ramp).item() == pytest.approx((1 + 2 + 4) / 3)
    assert gradient_l1(ramp, levels=1).item() == pytest.approx(1)
    half = torch.ones(1, 1, 16, 16)
    half[..., 8:] = 3
    assert gradient_l1(ramp, 1, half).item() == pytest.approx((7 + 8 * 3) / 15)


def test_errors_count_most_where_the_picture_is_flat() -> None:
    image = torch.zeros(2, 3, 32, 32)
    image[0, :, :, 16:] = 1
    weights = masking_weights(image, 0.03)
    torch.testing.assert_close(weights.mean(dim=(1, 2, 3)), torch.ones(2))
    assert weights[1].unique().tolist() == [1]
    assert weights[0, 0, 5, 0] == weights[0, 0, 5, 31] > 2 * weights[0, 0, 5, 15]
    flat, edge = torch.zeros_like(image[:1]), torch.zeros_like(image[:1])
    flat[..., 4], edge[..., 15] = 0.1, 0.1
    plain = LossWeights(l1=1.0, l2=0.5, gradient=0.7, log_error=0.02)
    masked = LossWeights(l1=1.0, l2=0.5, gradient=0.7, log_error=0.02, masking_contrast=0.03)
    first = image[:1]
    losses = [
        [reconstruction_loss(first + error, first, w).item() for error in (flat, edge)]
        for w in (plain, masked)
    ]
    assert losses[0][0] == pytest.approx(losses[0][1])
    assert losses[1][0] > losses[1][1]
