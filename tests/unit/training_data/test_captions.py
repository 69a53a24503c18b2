"""Captions: grammar, rates, plurals, and the split of held-out pairs."""

from random import Random

import pytest
from toy_drawings import RECORDS

from infinity.training.data.captions import count_caption, is_held_out, pair_caption, single_caption
from infinity.training.data.nouns import is_countable, plural, with_article


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("red apple", "red apples"),
        ("cactus", "cactuses"),
        ("strawberry", "strawberries"),
        ("smiling face with sunglasses", "smiling faces with sunglasses"),
        ("mouse", "mice"),
        ("person running", "people running"),
        ("monkey", "monkeys"),
        ("magnifying glass tilted left", "magnifying glasses tilted left"),
        ("ear of corn", "ears of corn"),
    ],
)
def test_plurals(name: str, expected: str) -> None:
    assert is_countable(name)
    assert plural(name) == expected


@pytest.mark.parametrize("name", ["grapes", "glasses", "bread", "hammer and wrench", "thumbs up"])
def test_plurals_and_mass_nouns_are_not_counted(name: str) -> None:
    assert not is_countable(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("avocado", "an avocado"), ("unicorn", "a unicorn"), ("grapes", "grapes"), ("bus", "a bus")],
)
def test_articles(name: str, expected: str) -> None:
    assert with_article(name) == expected


def test_captions_follow_the_grammar_at_the_stated_rates() -> None:
    rng = Random(0)
    texts = [single_caption(RECORDS[0], "blue", rng) for _ in range(4000)]
    assert all(t.startswith(("red apple", "a red apple")) for t in texts)
    assert all(t.endswith(" on a blue background") for t in texts)
    assert abs(sum(", flat style" in t for t in texts) / 4000 - 0.88) < 0.03
    assert abs(sum(", food" in t for t in texts) / 4000 - 0.12) < 0.03
    whites = [single_caption(RECORDS[0], "white", rng) for _ in range(4000)]
    assert 0.05 < sum("background" in t for t in whites) / 4000 < 0.3


def test_captions_of_pairs_and_counts() -> None:
    rng = Random(1)
    left = pair_caption(RECORDS[0], RECORDS[1], "left", "red", rng)
    assert "red apple to the left of" in left
    assert left.index("apple") < left.index("lemon")
    assert count_caption(RECORDS[0], 3, "white", rng).startswith("three red apples")
    with pytest.raises(ValueError, match="grapes"):
        count_caption(RECORDS[2], 2, "white", rng)


def test_the_split_is_stable_and_about_three_percent() -> None:
    share = sum(is_held_out(f"thing {i}", "flat") for i in range(5000)) / 5000
    assert 0.02 < share < 0.04
    assert is_held_out("mushroom", "3d")
    assert not is_held_out("mushroom", "minimal")
