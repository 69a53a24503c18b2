"""Packages, pack, rendering, captions and composition of the training data, on toy drawings."""

import base64
import hashlib
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from infinity.errors import UserError
from infinity.training.data.captions import (
    COLOURS,
    count_caption,
    is_held_out,
    pair_caption,
    single_caption,
)
from infinity.training.data.compose import Composer
from infinity.training.data.concepts import read_concepts
from infinity.training.data.fetch import archive_name, fetch, read_members
from infinity.training.data.nouns import is_countable, plural, with_article
from infinity.training.data.pack import Record, load_pack, write_pack
from infinity.training.data.render import render_drawing, render_pack
from infinity.training.data.sources import DrawingSource, Package
from stepvar_patch.cli import main

RECORDS = tuple(
    Record(id=f"{style}/{i}", concept=name, keywords=("food",), style=style, group="food-fruit")
    for style in ("flat", "3d")
    for i, name in enumerate(["red apple", "lemon", "grapes"])
)


def _archive(path: Path, members: dict[str, bytes]) -> Package:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("package/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    return Package(
        registry="npm",
        name="@toy/set",
        version="1.0.0",
        integrity=f"sha512-{digest}",
        licence="MIT",
        credit="toy",
    )


def _webp(colour: tuple[int, int, int, int], size: tuple[int, int] = (40, 20)) -> bytes:
    canvas = Image.new("RGBA", (64, 64))
    canvas.paste(Image.new("RGBA", size, colour), (3, 5))
    buffer = io.BytesIO()
    canvas.save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def test_a_cached_archive_is_used_when_its_hash_is_right(tmp_path: Path) -> None:
    package = _archive(tmp_path / "toy-set-1.0.0.tgz", {"package/a.json": b"{}"})
    assert archive_name(package) == "toy-set-1.0.0.tgz"
    assert fetch(package, tmp_path) == tmp_path / "toy-set-1.0.0.tgz"


def test_a_changed_archive_is_refused(tmp_path: Path) -> None:
    package = _archive(tmp_path / "toy-set-1.0.0.tgz", {"package/a.json": b"{}"})
    wrong = replace(package, integrity="sha512-" + base64.b64encode(bytes(64)).decode())
    with pytest.raises(UserError, match="pins"):
        fetch(wrong, tmp_path)


def test_members_are_read_in_memory_and_links_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.tgz"
    _archive(path, {"package/a.json": b"1", "../outside": b"2", "package/b": b"3"})
    before = set(tmp_path.parent.iterdir())
    assert read_members(path, {"a.json", "../outside", "link"}.__contains__) == {
        "a.json": b"1",
        "../outside": b"2",
    }
    assert set(tmp_path.parent.iterdir()) == before


def test_a_broken_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.tgz").write_bytes(b"no tar")
    with pytest.raises(UserError, match=r"a\.tgz"):
        read_members(tmp_path / "a.tgz", lambda _: True)


def test_signs_clocks_variants_and_gendered_forms_are_no_concepts() -> None:
    groups = json.dumps({"subgroups": {"1": "food-fruit", "2": "zodiac", "3": "person-role"}})
    rows = [
        ("red apple", "1F34E", 1, ["fruit", "red", "ripe"]),
        ("Leo", "264C", 2, []),
        ("one o’clock", "1F550", 1, []),
        ("man: bald", "1F468-200D-1F9B2", 3, []),
        ("woman pilot", "1F469-200D-2708-FE0F", 3, []),
        ("pilot", "1F9D1-200D-2708-FE0F", 3, []),
    ]
    keys = ("label", "hexcode", "subgroup", "tags")
    data = json.dumps([dict(zip(keys, row, strict=True)) for row in rows])
    concepts = read_concepts(data.encode(), groups.encode())
    assert {c.name for c in concepts.values()} == {"red apple", "pilot"}
    assert concepts["1f34e"].keywords == ("fruit", "ripe")
    assert "1f9d1-200d-2708" in concepts


def test_a_written_pack_comes_back_and_is_deterministic(tmp_path: Path) -> None:
    drawings: list[str | bytes] = ["<svg>é</svg>", b"RIFF", "<svg/>"]
    records = list(RECORDS[:3])
    for name in ("one.zip", "two.zip"):
        write_pack(tmp_path / name, records, drawings)
    pack = load_pack(tmp_path / "one.zip")
    assert list(pack.records) == records
    assert list(pack.drawings) == drawings
    assert pack.sha256 == load_pack(tmp_path / "two.zip").sha256


def test_the_data_verb_packs_what_its_config_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    apple = {"label": "red apple", "hexcode": "1F34E", "subgroup": 1, "tags": ["fruit"]}
    names = {
        "package/en/data.json": json.dumps([apple]).encode(),
        "package/meta/groups.json": b'{"subgroups": {"1": "food-fruit"}}',
    }
    webp = {"package/assets/1f34e.webp": _webp((200, 100, 50, 255))}
    packages = []
    for name, members in (("names", names), ("set", webp)):
        package = _archive(cache / f"toy-{name}-1.0.0.tgz", members)
        packages.append(replace(package, name=f"@toy/{name}"))
    drawings = (DrawingSource(style="3d", form="webp", package=packages[1]),)
    monkeypatch.setattr("infinity.training.data.pack.NAMES", packages[0])
    monkeypatch.setattr("infinity.training.data.pack.DRAWINGS", drawings)
    config = str(Path(__file__).parents[2] / "configs" / "train" / "data.yaml")
    words = [f"output_dir={tmp_path / 'pack'}", f"package_cache={cache}"]
    assert main(["train", "data", config, *words, "--json"]) == 0
    path = json.loads(capsys.readouterr().out)["pack"]
    assert path == str(tmp_path / "pack" / "drawings.zip")
    assert [record.id for record in load_pack(Path(path)).records] == ["3d/1f34e"]
    assert main(["train", "data", config, "output=x", "output_dir=/proc/x"]) == 2
    assert "output = 'x' is an unknown key; did you mean 'output_dir'?" in capsys.readouterr().err
    assert main(["train", "data", config, words[1], "output_dir=/proc/x"]) == 2
    assert "output_dir: cannot write into /proc/x" in capsys.readouterr().err


def test_a_missing_or_foreign_pack_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no data pack"):
        load_pack(tmp_path / "none.zip")
    (tmp_path / "bad.zip").write_bytes(b"zip?")
    with pytest.raises(UserError, match="not a data pack"):
        load_pack(tmp_path / "bad.zip")


def test_a_drawing_is_centred_and_fills_94_percent() -> None:
    image = render_drawing(_webp((200, 100, 50, 255)))
    rows = np.flatnonzero((image[..., 3] > 127).any(1))
    columns = np.flatnonzero((image[..., 3] > 127).any(0))
    assert abs(len(columns) - 0.94 * 256) < 2
    assert abs(len(rows) - 0.47 * 256) < 3
    assert abs(rows[0] + rows[-1] - 255) <= 1


def test_rendered_colour_is_premultiplied() -> None:
    image = render_drawing(_webp((200, 100, 50, 128)))
    assert np.abs(image[128, 128].astype(int) - [100, 50, 25, 128]).max() <= 2
    assert (image[..., :3] <= image[..., 3:]).all()


def test_an_empty_drawing_is_refused() -> None:
    with pytest.raises(UserError, match="empty"):
        render_drawing(_webp((0, 0, 0, 0)))


def test_a_small_svg_is_rendered_sharply() -> None:
    pytest.importorskip("resvg_py")
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 100">'
        '<rect x="40" y="40" width="10" height="10" fill="#ff0000"/></svg>'
    )
    alpha = render_drawing(svg)[..., 3]
    assert np.isin(alpha, (0, 255)).mean() > 0.98


def test_rendering_is_cached_by_the_pack(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    write_pack(tmp_path / "pack.zip", list(RECORDS[:2]), [_webp((255, 0, 0, 255))] * 2)
    pack = load_pack(tmp_path / "pack.zip")
    first = render_pack(pack, tmp_path, workers=1)
    assert first.shape == (2, 256, 256, 4)
    files = list(tmp_path.glob("rendered-*.npy"))
    assert len(files) == 1
    modified = files[0].stat().st_mtime_ns
    assert np.array_equal(render_pack(pack, tmp_path, workers=1), first)
    assert files[0].stat().st_mtime_ns == modified


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
