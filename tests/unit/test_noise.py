"""The per-image random stream: known answers, independence, distribution."""

import pytest
import torch

from infinity.sampling.bits import sample_bits, truncate
from infinity.sampling.noise import PerImageNoise, philox_4x32


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(
    counter: tuple[int, ...], key: tuple[int, ...], answer: tuple[int, ...]
) -> None:
    """The three published test vectors of Philox4x32-10."""
    words = philox_4x32(
        tuple(torch.tensor([c]) for c in counter),  # type: ignore[arg-type]
        tuple(torch.tensor([k]) for k in key),  # type: ignore[arg-type]
    )
    assert tuple(int(w) for w in words) == answer


def test_an_image_draws_alike_in_any_company() -> None:
    together = PerImageNoise([7, 8, 1 << 62], "cpu").exponential(4, 101)
    assert torch.equal(together[2:], PerImageNoise([1 << 62], "cpu").exponential(4, 101))
    assert torch.equal(together[:1, :50], PerImageNoise([7], "cpu").exponential(4, 50))


def test_scales_and_seeds_draw_differently() -> None:
    noise = PerImageNoise([0, 1], "cpu")
    a, b = noise.exponential(0, 1000), noise.exponential(1, 1000)
    assert not torch.equal(a[0], a[1])
    assert not torch.equal(a, b)
    assert abs(torch.corrcoef(torch.stack([a[0].flatten(), b[0].flatten()]))[0, 1]) < 0.1


def test_draws_are_exponential() -> None:
    draws = PerImageNoise([3], "cpu").exponential(0, 100_000).flatten()
    assert draws.isfinite().all()
    assert (draws > 0).all()
    assert abs(draws.mean() - 1) < 0.02
    assert abs(draws.var() - 1) < 0.05


def test_bits_follow_their_probability() -> None:
    logits = torch.tensor([0.0, 1.0]).expand(1, 100_000, 2)
    bits = sample_bits(logits, PerImageNoise([3], "cpu").exponential(0, 100_000))
    assert abs(bits.float().mean() - torch.sigmoid(torch.tensor(1.0))) < 0.01


def test_truncation_makes_confident_bits_certain() -> None:
    logits = torch.tensor([[0.0, 4.0], [0.0, 1.0]])
    cut = truncate(logits, top_k=0, top_p=0.97)
    assert cut[0].tolist() == [float("-inf"), 4.0]
    assert cut[1].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("seed", [-1, 1 << 63])
def test_seed_out_of_range(seed: int) -> None:
    with pytest.raises(ValueError, match="must be in"):
        PerImageNoise([seed], "cpu")
