"""GenEval's rules on synthetic detections, and the detector's plumbing on a tiny random network."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from infinity.errors import UserError
from stepvar_patch.experiments.benchmarks.geneval import checked_metadata
from stepvar_patch.experiments.benchmarks.geneval_detect import (
    CLASSES,
    COLOURS,
    ColourJudge,
    Detector,
    instances,
)
from stepvar_patch.experiments.benchmarks.geneval_rules import (
    Detection,
    confident,
    judge,
    relations,
)
from stepvar_patch.experiments.benchmarks.geneval_score import score_folder, summarise

SIDE = 10.0


def thing(name: str, x: float = 50, y: float = 50, score: float = 0.95) -> Detection:
    half = SIDE / 2
    return Detection(name=name, score=score, box=(x - half, y - half, x + half, y + half))


def no_colour(found: object) -> list[str]:
    raise AssertionError("no colour was asked for")


def right(metadata: dict, *found: Detection, colour: str | None = None) -> bool:
    metadata = {"tag": "x", **metadata}
    named = no_colour if colour is None else (lambda objects: [colour] * len(objects))
    return judge(metadata, confident(found, metadata["tag"]), named).correct


def test_an_object_must_be_surer_than_the_threshold_of_its_task() -> None:
    one = {"include": [{"class": "cat", "count": 1}]}
    assert right(one, thing("cat", score=0.31))
    assert not right(one, thing("cat", score=0.30))
    assert not right(one, thing("dog"))
    counting = {**one, "tag": "counting"}
    assert not right(counting, thing("cat", score=0.9))
    assert right(counting, thing("cat", score=0.91))


def test_counting_takes_neither_fewer_nor_more() -> None:
    three = {
        "tag": "counting",
        "include": [{"class": "cat", "count": 3}],
        "exclude": [{"class": "cat", "count": 4}],
    }
    cats = [thing("cat", x) for x in (10, 30, 50, 70)]
    assert not right(three, *cats[:2])
    assert right(three, *cats[:3])
    assert not right(three, *cats)
    assert right(three, *cats[:3], thing("cat", 90, score=0.5))


def test_at_most_sixteen_objects_of_a_class_count_and_the_surest_come_first() -> None:
    found = confident([thing("cat", score=0.5 + i / 100) for i in range(20)], "x")["cat"]
    assert len(found) == 16
    assert found[0].score == pytest.approx(0.69)


def test_the_colour_is_asked_of_the_surest_objects_and_must_be_that_of_all() -> None:
    rule = {"include": [{"class": "car", "count": 2, "color": "red"}]}
    cars = [thing("car", 10, score=0.9), thing("car", 30, score=0.8), thing("car", 60, score=0.4)]
    assert right(rule, *cars, colour="red")
    assert not right(rule, *cars, colour="blue")
    asked: list[float] = []

    def colours(objects: list[Detection]) -> list[str]:
        asked.extend(one.score for one in objects)
        return ["red", "blue"]

    verdict = judge(rule, confident(cars, "x"), colours)
    assert asked == [0.9, 0.8]
    assert verdict.reasons == ("2 × red car expected, found red, blue",)


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (0, 50, {"left of"}),
        (100, 50, {"right of"}),
        (50, 0, {"above"}),
        (50, 100, {"below"}),
        (0, 0, {"left of", "above"}),
        (100, 100, {"right of", "below"}),
        (50, 50, set()),
        (51.9, 50, set()),
        (90, 65, {"right of"}),
    ],
)
def test_relations_follow_the_centres_beyond_a_tenth_of_both_extents(
    x: float, y: float, expected: set[str]
) -> None:
    assert relations(thing("a", x, y), thing("b", 50, 50)) == expected


def test_a_small_offset_that_is_left_over_must_still_exceed_half_the_distance() -> None:
    assert relations(thing("a", 53.5, 50), thing("b", 50, 50)) == set()
    assert relations(thing("a", 54.5, 50), thing("b", 50, 50)) == {"right of"}


def test_positions_hold_between_the_surest_of_both_groups_and_need_a_target() -> None:
    rule = {
        "include": [
            {"class": "dog", "count": 1},
            {"class": "cat", "count": 1, "position": ["left of", 0]},
        ]
    }
    assert right(rule, thing("cat", 10), thing("dog", 80))
    assert not right(rule, thing("cat", 80), thing("dog", 10))
    assert not right(rule, thing("cat", 10))
    two_dogs = (thing("dog", 80, score=0.99), thing("dog", 0, score=0.5))
    assert right(rule, thing("cat", 40), *two_dogs)


def test_the_score_is_the_mean_over_tasks_not_over_images() -> None:
    verdicts = [("0", "a", True), ("0", "a", True), ("1", "a", True), ("2", "b", False)]
    score = summarise(verdicts)
    assert score.tasks == {"a": 1.0, "b": 0.0}
    assert score.overall == 0.5
    assert score.low <= 0.5 <= score.high


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"tag": 3}, "tag must be a text"),
        ({"include": {}}, "include must be a list"),
        ({"include": [{"count": 1}]}, "include[0] must have a class"),
        ({"include": [{"class": "cat", "count": 0}]}, "count of at least 1"),
        ({"include": [{"class": "cat", "count": 1, "position": ["near", 0]}]}, "left of"),
        ({"include": [{"class": "cat", "count": 1, "position": ["above", 0]}]}, "earlier"),
    ],
)
def test_malformed_metadata_is_refused_in_one_sentence(change: dict, told: str) -> None:
    good = {"tag": "x", "prompt": "a cat", "include": [{"class": "cat", "count": 1}]}
    with pytest.raises(UserError, match="m:1") as caught:
        checked_metadata(json.dumps({**good, **change}), "m:1")
    assert told in str(caught.value)


def test_instances_are_the_best_pairs_of_query_and_class_with_their_masks() -> None:
    classes = torch.full((3, 81), -20.0)
    classes[0, CLASSES.index("cat")] = 20
    classes[1, 80] = 20
    classes[2, CLASSES.index("dog")] = 20
    masks = torch.full((3, 8, 8), -20.0)
    masks[0, 2:4, 1:7] = 20
    found = [d for d in instances(classes, masks, (16, 16)) if d.score > 0.3]
    assert [d.name for d in found] == ["cat"]
    assert found[0].score == pytest.approx(1, abs=0.05)
    left, top, right_edge, bottom = found[0].box
    assert (left, right_edge) == pytest.approx((2, 14), abs=1)
    assert (top, bottom) == pytest.approx((4, 8), abs=1)


COLOUR_OF = {"red": (1.0, 0, 0), "green": (0, 1.0, 0), "blue": (0, 0, 1.0)}


class FakeClip:
    """Embeds pictures and colour words by their mean colour."""

    def texts(self, texts: list[str]) -> torch.Tensor:
        named = [next((c for c in COLOURS if f" {c}" in text), "") for text in texts]
        return torch.tensor([COLOUR_OF.get(c, (0.0, 0, 0)) for c in named])

    def images(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean(dim=(1, 2)) - 0x99


def test_colours_are_judged_on_the_masked_object_inside_its_box() -> None:
    image = torch.zeros(20, 20, 3, dtype=torch.uint8)
    image[:, :, 2] = 255
    image[5:10, 5:10] = torch.tensor([255, 0, 0], dtype=torch.uint8)
    mask = torch.zeros(20, 20, dtype=torch.bool)
    mask[5:10, 5:10] = True
    masked = Detection(name="car", score=1, box=(0, 0, 20, 20), mask=mask)
    plain = Detection(name="car", score=1, box=(12, 12, 20, 20))
    assert ColourJudge(FakeClip())(image, [masked, plain]) == ["red", "blue"]


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_detector(tmp_path_factory.mktemp("detector"), 80)


def write_tiny_detector(folder: Path, labels: int) -> Path:
    pytest.importorskip("scipy")
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        SwinConfig,
    )

    torch.manual_seed(0)
    backbone = SwinConfig(
        image_size=32, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=backbone, num_labels=labels, num_queries=5, hidden_dim=32,
        feature_size=32, mask_feature_size=32, encoder_layers=1, decoder_layers=2,
        num_attention_heads=2, encoder_feedforward_dim=16, dim_feedforward=16,
    )  # fmt: skip
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    return folder


def test_a_random_detector_runs_from_its_folder_and_a_folder_is_scored(
    detector: Path, tmp_path: Path
) -> None:
    detect = Detector(detector, "cpu")
    found = detect(torch.randint(0, 256, (48, 64, 3), dtype=torch.uint8))
    assert all(d.name in CLASSES and 0 <= d.score <= 1 for d in found)
    assert all(d.mask is not None and d.mask.shape == (48, 64) for d in found)
    place = tmp_path / "00000"
    (place / "samples").mkdir(parents=True)
    metadata = {"tag": "t", "prompt": "a cat", "include": [{"class": "cat", "count": 1}]}
    (place / "metadata.jsonl").write_text(json.dumps(metadata))
    with pytest.raises(UserError, match=r"4 files are missing: 00000/samples/0000\.png"):
        score_folder(tmp_path, detect, ColourJudge(FakeClip()), "cpu")
    for k in range(4):
        Image.new("RGB", (64, 64), "red").save(place / "samples" / f"{k:04d}.png")
    score = score_folder(tmp_path, lambda image: [thing("cat")], ColourJudge(FakeClip()), "cpu")
    assert (score.overall, score.images) == (1.0, 4)
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["correct"] is True


def test_a_detector_of_other_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a detector of 7 classes; GenEval needs COCO's 80"):
        Detector(write_tiny_detector(tmp_path, 7), "cpu")


def test_there_are_eighty_classes() -> None:
    assert len(set(CLASSES)) == 80
