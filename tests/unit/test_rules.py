"""Rules by scale, kept counts, and what they refuse."""

import pytest

from infinity.errors import UserError
from infinity.schedule import scale_schedule
from stepvar_patch.rules import ScaleRule, kept_count, resolve

SCHEDULE = scale_schedule(1.0, "0.06M")


@pytest.mark.parametrize(
    ("ratio", "positions", "kept"),
    [(1.0, 7, 7), (0.5, 7, 4), (0.9, 10, 9), (0.7, 10, 7), (0.3, 10, 3), (0.001, 5, 1), (1, 4, 4)],
)
def test_kept_count_drops_the_floor_of_the_written_ratio(
    ratio: float, positions: int, kept: int
) -> None:
    assert kept_count(ratio, positions) == kept


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.01])
def test_a_ratio_that_keeps_nothing_or_too_much_is_refused(ratio: float) -> None:
    with pytest.raises(UserError, match="keep_ratio"):
        kept_count(ratio, 10)


def test_keys_may_be_text_or_negative() -> None:
    late, early = ScaleRule(keep_ratio=0.5), ScaleRule(keep_ratio=0.8)
    assert resolve({"-1": late, 2: early}, SCHEDULE) == {2: early, 6: late}


@pytest.mark.parametrize("key", ["7", -8, "last", "1.5"])
def test_a_rule_beyond_the_schedule_is_refused(key: str | int) -> None:
    with pytest.raises(UserError, match=f"scales.{key}"):
        resolve({key: ScaleRule()}, SCHEDULE)


def test_two_rules_for_one_scale_are_refused() -> None:
    with pytest.raises(UserError, match=r"scales\.-1 and scales\.6"):
        resolve({"-1": ScaleRule(), "6": ScaleRule()}, SCHEDULE)


def test_rows_once_dropped_stay_dropped() -> None:
    resolve({3: ScaleRule(rows="cond"), 4: ScaleRule(), 5: ScaleRule(rows="cond")}, SCHEDULE)
    with pytest.raises(UserError, match="left only cond"):
        resolve({3: ScaleRule(rows="cond"), 5: ScaleRule(rows="uncond")}, SCHEDULE)


def test_dropping_every_scale_is_refused() -> None:
    with pytest.raises(UserError, match="every scale"):
        resolve({si: ScaleRule(run=False) for si in range(7)}, SCHEDULE)
