"""Which tokenizer belongs to which released transformer."""

from pathlib import Path

import pytest
import torch
from spec_shapes import Shape, tokenizer_shapes, transformer_shapes

from infinity.checkpoint import open_official
from infinity.checkpoint.rules import match_keys
from infinity.config import PRESETS
from infinity.errors import UserError
from infinity.transformer.model import InfinityTransformer


def fake_file(shapes: dict[str, Shape], path: Path) -> Path:
    """A checkpoint of the right shapes that takes no room: every tensor is an expanded zero."""
    zero = torch.zeros(1)
    torch.save({k: zero.expand(s) if s else zero for k, s in shapes.items()}, path)
    return path


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("infinity-125m", "infinity_vae_d16.pth"),
        ("infinity-2b", "infinity_vae_d32reg.pth"),
        ("infinity-8b", "infinity_vae_d56_f8_14_patchify.pth"),
    ],
)
def test_released_models_want_their_own_tokenizer(tmp_path: Path, name: str, right: str) -> None:
    preset = PRESETS[name]
    weights = fake_file(transformer_shapes(preset.transformer), tmp_path / "weights.pth")
    for other in ("infinity-125m", "infinity-2b", "infinity-8b"):
        shapes = tokenizer_shapes(PRESETS[other].tokenizer)
        path = fake_file(shapes, tmp_path / f"{other}_reg.pth")
        if other == name:
            config = open_official(weights, path).config
            assert config == preset
        else:
            with pytest.raises(UserError, match=rf"{other}_reg\.pth: .* use {right}"):
                open_official(weights, path)


@pytest.mark.parametrize(
    ("place", "small"),
    [
        ("8b_512x512.pth", True),
        ("infinity_8b_512x512_weights/w.pth", True),
        ("8B-512.pth", True),
        ("nvme512/8b.pth", False),
        ("512x512/models/8b.pth", False),
        ("8b_5120.pth", False),
    ],
)
def test_the_model_of_512_pixels_is_known_by_name_or_path(
    tmp_path: Path, place: str, small: bool
) -> None:
    preset = PRESETS["infinity-8b-512"]
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    weights = fake_file(transformer_shapes(preset.transformer), tmp_path / place)
    vae = fake_file(tokenizer_shapes(preset.tokenizer), tmp_path / "vae.pth")
    found = open_official(weights, vae).config
    assert found == (preset if small else PRESETS["infinity-8b"])
    named = open_official(weights, vae, name="infinity-8b").config
    assert named == PRESETS["infinity-8b"]


def test_a_request_for_another_model_is_refused(tmp_path: Path) -> None:
    preset = PRESETS["infinity-125m"]
    weights = fake_file(transformer_shapes(preset.transformer), tmp_path / "w.pth")
    vae = fake_file(tokenizer_shapes(preset.tokenizer), tmp_path / "vae.pth")
    with pytest.raises(UserError, match=r"is not infinity-2b: depth 12 instead of 32"):
        open_official(weights, vae, name="infinity-2b")


def test_the_plain_d32_tokenizer_draws_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    preset = PRESETS["infinity-2b"]
    weights = fake_file(transformer_shapes(preset.transformer), tmp_path / "w.pth")
    shapes = tokenizer_shapes(preset.tokenizer)
    open_official(weights, fake_file(shapes, tmp_path / "infinity_vae_d32_reg.pth"))
    assert not caplog.records
    open_official(weights, fake_file(shapes, tmp_path / "infinity_vae_d32.pth"))
    assert "infinity_vae_d32reg.pth" in caplog.text


def test_keys_of_2b_and_8b_fit_their_modules() -> None:
    for name in ("infinity-2b", "infinity-8b"):
        shapes = transformer_shapes(PRESETS[name].transformer)
        with torch.device("meta"):
            module = InfinityTransformer(PRESETS[name].transformer)
        wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
        assert match_keys(shapes, wanted, name) == {key: key for key in wanted}
