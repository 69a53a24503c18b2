"""What a person reads on stderr."""

import logging

import pytest

from stepvar_patch.terminal import TalkHandler


def test_a_line_is_not_wrapped_and_a_warning_comes_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logger = logging.Logger("infinity.test")
    logger.addHandler(TalkHandler())
    for _ in range(2):
        logger.warning("%s: no released model [has] this shape\x1b[2J %s", "t.pth", "long " * 40)
        logger.info("step")
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.startswith("warning: t.pth: no released model [has] this shape\\x1b[2J long long")
    assert first.endswith("long long ")
    assert rest == ["step", "step"]
