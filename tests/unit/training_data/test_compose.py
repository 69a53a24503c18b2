"""Pictures composed of drawings, as their captions say."""

import pytest
import torch
from toy_drawings import RECORDS

from infinity.training.data.captions import COLOURS
from infinity.training.data.compose import Composer
from infinity.training.data.pack import Record


def _rendered() -> torch.Tensor:
    out = torch.zeros(len(RECORDS), 256, 256, 4, dtype=torch.uint8)
    out[:, 8:-8, 8:-8, 3] = 255
    for row in range(len(RECORDS)):
        out[row, 8:-8, 8:-8, row % 3] = 255
    return out


def test_batches_repeat_with_the_seed_and_stay_in_range() -> None:
    images, captions = Composer(_rendered(), RECORDS, seed=3).batch(24)
    again, same = Composer(_rendered(), RECORDS, seed=3).batch(24)
    assert torch.equal(images, again)
    assert captions == same
    assert images.shape == (24, 3, 256, 256)
    assert images.min() >= -1
    assert images.max() <= 1
    assert Composer(_rendered(), RECORDS, seed=4).batch(24)[1] != captions


def test_the_corner_shows_the_background_that_the_caption_names() -> None:
    images, captions = Composer(_rendered(), RECORDS, seed=5).batch(64)
    table = torch.tensor(list(COLOURS.values())) / 127.5 - 1
    named = 0
    for image, caption in zip(images, captions, strict=True):
        nearest = list(COLOURS)[int((table - image[:, 0, 0]).norm(dim=1).argmin())]
        stated = caption.rpartition(" on a")[2].split()[-2] if "background" in caption else "white"
        assert nearest == stated, caption
        named += stated != "white"
    assert named > 10


def test_counts_and_pairs_show_as_many_drawings_as_the_caption_says() -> None:
    images, captions = Composer(_rendered(), RECORDS, seed=6).batch(160)
    words = {"two ": 2, "three ": 3, "four ": 4}
    seen = set()
    for image, caption in zip(images, captions, strict=True):
        background = image[:, 0, 0]
        drawn = ((image - background[:, None, None]).abs().amax(0) > 0.2).float().mean().item()
        expected = next((n for w, n in words.items() if caption.startswith(w)), 1)
        if " to the left of " in caption or " above " in caption or " and " in caption:
            expected = 2
        share = {1: 0.8, 2: 0.37, 3: 0.56, 4: 0.74}[expected]
        assert abs(drawn - share) < 0.11, caption
        seen.add(expected)
    assert seen == {1, 2, 3, 4}


def test_drawings_keep_their_shape_on_a_portrait_canvas() -> None:
    images, captions = Composer(_rendered(), RECORDS, seed=6, canvas=(288, 216)).batch(60)
    assert images.shape == (60, 3, 288, 216)
    for image, caption in zip(images, captions, strict=True):
        if not caption.startswith(("two ", "three ", "four ")) and " and " not in caption:
            drawn = (image - image[:, :1, :1]).abs().amax(0) > 0.2
            height, width = (int(drawn.any(dim=d).sum()) for d in (1, 0))
            if " above " not in caption and " left of " not in caption:
                assert abs(height - width) <= 6, caption
                assert 0.8 * 216 < width < 216


def test_held_out_drawings_are_never_composed() -> None:
    hidden = Record(id="3d/x", concept="mushroom", keywords=(), style="3d", group="plant-other")
    rendered = torch.cat([_rendered(), torch.zeros(1, 256, 256, 4, dtype=torch.uint8)])
    composer = Composer(rendered, (*RECORDS, hidden), seed=0)
    assert not any("mushroom" in caption for caption in composer.batch(128)[1])


def test_every_training_drawing_is_shown_equally_often() -> None:
    composer = Composer(_rendered(), RECORDS, seed=0)
    drawn = [next(composer._singles) for _ in range(5 * len(RECORDS))]
    assert {drawn.count(row) for row in range(len(RECORDS))} == {5}


def test_single_places_the_drawing_unchanged_on_an_exact_colour() -> None:
    composer = Composer(_rendered(), RECORDS, seed=0)
    image = composer.single(["flat/1"], "teal")[0]
    teal = torch.tensor(COLOURS["teal"]) / 127.5 - 1
    assert torch.allclose(image[:, 0, 0], teal, atol=1e-6)
    assert torch.allclose(image[:, 128, 128], torch.tensor([-1.0, 1.0, -1.0]), atol=1e-6)
    with pytest.raises(KeyError):
        composer.single(["nobody"])


def test_records_must_match_the_drawings() -> None:
    with pytest.raises(ValueError, match="6 rendered"):
        Composer(_rendered(), RECORDS[:2], seed=0)
