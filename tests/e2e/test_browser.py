"""The pages that the command line writes, opened in a headless Chromium as a reader would."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import VARIABLE, Chromium, find_chromium
from PIL import Image
from tiny_model import REPOSITORY, write_tiny_model

from stepvar_patch.cli import main

PROGRAM = find_chromium()
pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason=f"no Chromium on the PATH, and {VARIABLE} names none"
)
HOSTILE = (
    "</title><script>window.hacked = 1</script>"
    "\"><img src=x onerror='window.hacked = 2'><svg onload=alert(3)>"
    " {{ 7 * 7 }} <b>bold</b> &lt;"
)
WIDTHS = {"desktop": 1280, "phone": 390}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    assert PROGRAM is not None
    with Chromium(PROGRAM, tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mask page of a prompt that attacks it."""
    folder = tmp_path_factory.mktemp("masks")
    write_tiny_model(folder / "model")
    (folder / "p.jsonl").write_text(json.dumps({"id": "x", "prompt": HOSTILE, "seed": 1}))
    (folder / "c.yaml").write_text(
        f"model: {folder}/model\nprompts: {folder}/p.jsonl\noutput: {folder}/out\ndevice: cpu\n"
    )
    policy = f"pruning={REPOSITORY}/configs/pruning/stepvar_balanced.yaml"
    assert main(["show-masks", str(folder / "c.yaml"), policy]) == 0
    return folder / "out" / "x_1.masks.html"


def check_page(browser: Chromium, page: Path, picture: Path, width: int) -> None:
    """What holds for every page: silent, alone, and not wider than the window."""
    browser.open(page, width=width)
    assert browser.run("window.hacked ?? null") is None
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("[...document.images].every(image => image.naturalWidth > 0)")
    browser.screenshot(picture)
    assert browser.complaints == []
    assert browser.requests == [page.resolve().as_uri()]
    with Image.open(picture) as shot:
        assert shot.width == width
        assert len(shot.convert("RGB").getcolors(1 << 24)) > 50


@pytest.mark.parametrize("width", WIDTHS.values(), ids=list(WIDTHS))
def test_the_mask_page_opens_without_a_server(
    browser: Chromium, masks: Path, tmp_path: Path, width: int
) -> None:
    check_page(browser, masks, tmp_path / "shot.png", width)


def test_the_mask_page_shows_a_hostile_prompt_as_text(browser: Chromium, masks: Path) -> None:
    browser.open(masks)
    assert browser.run("document.querySelector('h1').textContent") == HOSTILE
    assert browser.run("document.title") == f"Kept tokens: {HOSTILE}"
    assert browser.run("document.querySelectorAll('script').length") == 1
    assert browser.run("document.querySelectorAll('h1 *, [onerror], [onload]').length") == 0


def test_a_page_runs_no_script_but_its_own(browser: Chromium, masks: Path, tmp_path: Path) -> None:
    """Were a prompt ever not escaped, the content policy would still keep it from running."""
    page = tmp_path / "page.html"
    page.write_text(masks.read_text().replace("</h1>", "</h1><script>window.hacked = 1</script>"))
    browser.open(page)
    assert browser.run("window.hacked ?? null") is None
    assert any("Content Security Policy" in text for text in browser.complaints)


def test_the_slider_chooses_the_scale(browser: Chromium, masks: Path) -> None:
    shown = "[...document.querySelectorAll('section')].filter(s => s.offsetHeight).map(s => s.id)"
    browser.open(masks)
    assert browser.run(shown) == ["s6"]
    browser.run("document.getElementById('scale').focus()")
    browser.press("ArrowLeft", 37)
    assert browser.run(shown) == ["s5"]
    assert browser.run("document.querySelectorAll('.bars .now').length") == 1
    browser.run("document.querySelectorAll('.bars button')[2].click()")
    assert browser.run(shown) == ["s2"]
    assert browser.run("document.getElementById('scale').value") == "2"
    assert browser.complaints == []
