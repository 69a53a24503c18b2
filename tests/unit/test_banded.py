"""The decoder in bands gives the picture of the decoder in one piece."""

import pytest
import torch

from infinity.config import TokenizerConfig
from infinity.tokenizer.autoencoder import BSQTokenizer
from infinity.tokenizer.banded import BandedDecoder

CONFIG = TokenizerConfig(
    codebook_dim=6, patch_size=4, channels=32, channel_multipliers=(1, 2, 4), res_blocks=1
)


@pytest.fixture(scope="module")
def tokenizer() -> BSQTokenizer:
    torch.manual_seed(0)
    made = BSQTokenizer(CONFIG).eval().requires_grad_(False)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made


@pytest.mark.parametrize("grid", [(8, 8), (13, 5), (4, 21)])
@pytest.mark.parametrize("values", [1, 9_000, 1 << 40])
def test_bands_change_only_rounding(
    tokenizer: BSQTokenizer, grid: tuple[int, int], values: int
) -> None:
    z = torch.randn(2, 6, *grid, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        whole = tokenizer.decoder(z)
        banded = BandedDecoder(tokenizer.decoder, values)(z)
    assert whole.abs().max() > 0.1
    if values == 1 << 40:
        assert torch.equal(banded, whole)
    torch.testing.assert_close(banded, whole, rtol=1e-4, atol=1e-5 * whole.abs().max().item())


def test_names_of_the_parameters_stay(tokenizer: BSQTokenizer) -> None:
    assert (
        BandedDecoder(tokenizer.decoder).state_dict().keys()
        == tokenizer.decoder.state_dict().keys()
    )


def test_under_autocast_the_maps_are_in_the_compute_dtype(tokenizer: BSQTokenizer) -> None:
    z = torch.randn(1, 6, 8, 8)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        banded, whole = BandedDecoder(tokenizer.decoder, 1)(z), tokenizer.decoder(z)
    assert banded.dtype == whole.dtype == torch.bfloat16
    assert (banded - whole).float().abs().max() < 0.05 * whole.float().abs().max()
