"""PNGs that carry their provenance, and what happens to those that do not."""

import json
import zlib
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from infinity.errors import UserError
from infinity.io.images import CHUNK, Provenance, contact_sheet, read_png, strip, write_png

PROVENANCE = Provenance(
    id="a",
    prompt="ein Bär\n🐻",
    negative_prompt=None,
    seed=2**53 - 1,
    settings={"guidance_scale": [1.5, 2.0]},
    model={"name": "embedded", "digest": "0", "path": "weights"},
    versions={"torch": "2"},
    extra={"kind": "pet"},
)


def picture(color: str = "red", size: tuple[int, int] = (8, 6)) -> Image.Image:
    return Image.new("RGB", size, color)


def test_provenance_and_pixels_come_back(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", picture(), PROVENANCE)
    image, provenance = read_png(tmp_path / "a.png")
    assert provenance == PROVENANCE
    assert image.tobytes() == picture().tobytes()
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    write_png(path, picture(), PROVENANCE)
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"a\.png: the disk is full"):
        write_png(path, picture("blue"), PROVENANCE)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def damaged(kind: str, path: Path) -> None:
    info = PngInfo()
    if kind == "plain":
        picture().save(path)
    elif kind == "jpeg":
        picture().save(path, format="JPEG")
    elif kind == "text":
        path.write_text("hello")
    elif kind == "cut":
        write_png(path, picture(size=(256, 256)), PROVENANCE)
        path.write_bytes(path.read_bytes()[:-80])
    elif kind == "flipped":
        write_png(path, picture(size=(64, 64)), PROVENANCE)
        data = bytearray(path.read_bytes())
        data[-40] ^= 0xFF
        path.write_bytes(bytes(data))
    elif kind == "bomb":
        info.add(b"zTXt", CHUNK.encode() + b"\0\0" + zlib.compress(b" " * 2**24))
        picture().save(path, pnginfo=info)
    elif kind == "huge":
        info.add_itxt(CHUNK, json.dumps(PROVENANCE.to_json()))
        Image.new("1", (10_000, 9_000)).save(path, pnginfo=info)
    elif kind == "folder":
        path.mkdir()
    elif kind != "missing":
        info.add_itxt(CHUNK, kind)
        picture().save(path, pnginfo=info)


@pytest.mark.parametrize(
    "kind",
    [
        *("plain", "jpeg", "text", "cut", "flipped", "bomb", "huge", "folder", "missing"),
        *("{", "[]", "{}", "3", "[" * 100_000, '{"id": 3}'),
    ],
    ids=lambda kind: kind[:10],
)
def test_a_foreign_or_damaged_image_is_one_sentence(tmp_path: Path, kind: str) -> None:
    damaged(kind, tmp_path / "x.png")
    with pytest.raises(UserError, match=r"x\.png"):
        read_png(tmp_path / "x.png")


def test_strip_and_contact_sheet_lay_images_in_reading_order(tmp_path: Path) -> None:
    row = strip([picture("red"), picture("blue")], height_px=60)
    assert row.size == (2 * 84 + 4, 68)
    assert row.getpixel((40, 30)) == (255, 0, 0)
    assert row.getpixel((124, 30)) == (0, 0, 255)
    paths = {}
    for color in ("red", "lime", "blue"):
        paths[color] = tmp_path / f"{color}.png"
        write_png(paths[color], picture(color, (96, 96)))
    sheet = contact_sheet(paths, columns=2, thumbnail_px=48)
    assert sheet.size == (2 * 52 + 4, 2 * 68 + 4)
    found = [sheet.getpixel(at) for at in ((28, 28), (80, 28), (28, 96), (80, 96))]
    assert found == [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]
