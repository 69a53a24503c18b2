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
BALANCED = f"pruning={REPOSITORY}/configs/pruning/stepvar_balanced.yaml"
WIDTHS = {"desktop": 1280, "phone": 390}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    assert PROGRAM is not None
    with Chromium(PROGRAM, tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config whose only prompt attacks the pages about it, and a tiny model."""
    folder = tmp_path_factory.mktemp("work")
    write_tiny_model(folder / "model")
    (folder / "p.jsonl").write_text(json.dumps({"id": "x", "prompt": HOSTILE, "seed": 1}))
    (folder / "c.yaml").write_text(
        f"model: {folder}/model\nprompts: {folder}/p.jsonl\noutput: {folder}/out\ndevice: cpu\n"
    )
    return folder


@pytest.fixture(scope="module")
def masks(folder: Path) -> Path:
    """A mask page."""
    assert main(["show-masks", str(folder / "c.yaml"), BALANCED]) == 0
    return folder / "out" / "x_1.masks.html"


@pytest.fixture(scope="module")
def report(folder: Path, masks: Path) -> Path:
    """A report on two runs, one with masks, and on an ablation whose labels attack the page."""
    pytest.importorskip("matplotlib")
    words = [str(folder / "c.yaml"), "contact_sheet=false"]
    assert main(["generate", *words, BALANCED]) == 0
    assert main(["generate", *words, f"output={folder}/dense"]) == 0
    table = json.loads((REPOSITORY / "results" / "ablations" / "score" / "table.json").read_text())
    table["cells"][0]["cell"] = table["command"] = table["title"] = HOSTILE
    for cell in table["cells"]:
        cell["ms"], cell["time_ratio"] = 500.0, cell["flop_ratio"]
    (folder / "table.json").write_text(json.dumps(table))
    page = folder / "report.html"
    results = [folder / "dense", folder / "out", folder / "table.json"]
    assert main(["report", *map(str, results), "--output", str(page)]) == 0
    return page


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


@pytest.mark.parametrize("width", WIDTHS.values(), ids=list(WIDTHS))
def test_the_report_opens_without_a_server(
    browser: Chromium, report: Path, tmp_path: Path, width: int
) -> None:
    check_page(browser, report, tmp_path / "shot.png", width)
    assert report.stat().st_size < 10 * 2**20
    assert browser.run("document.querySelectorAll('#pictures .panels img').length") == 2
    assert browser.run("document.querySelectorAll('#pictures .wide img').length") == 1
    assert browser.run("document.querySelectorAll('#times svg, #overall svg').length") == 5
    links = "[...document.querySelectorAll('nav a')].every(a => document.querySelector(a.hash))"
    assert browser.run(links)


def test_the_report_shows_hostile_texts_as_texts(browser: Chromium, report: Path) -> None:
    browser.open(report)
    assert browser.run("document.querySelector('h3').textContent") == f"{HOSTILE} (seed 1)"
    assert browser.run("document.querySelector('p + pre code').textContent") == HOSTILE
    assert browser.run("document.querySelector('tbody td').textContent") == HOSTILE
    assert browser.run("document.querySelectorAll('script, [onerror], [onload]').length") == 0
    assert browser.run("document.querySelectorAll('h2 *, h3 *, td *, li a *').length") == 0


def test_a_chart_has_light_ink_on_a_dark_page(browser: Chromium, report: Path) -> None:
    ink = "getComputedStyle(document.querySelector('#overall svg text')).fill"
    browser.open(report)
    light = browser.run(ink)
    browser.open(report, scheme="dark")
    dark = browser.run(ink)
    assert sum(map(int, dark[4:-1].split(","))) > 600 > 200 > sum(map(int, light[4:-1].split(",")))
