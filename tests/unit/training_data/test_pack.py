"""The pack of drawings, and drawings rendered from it."""

import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy_drawings import RECORDS, archive

from infinity.errors import UserError
from infinity.training.data.pack import load_pack, write_pack
from infinity.training.data.render import render_drawing, render_pack
from infinity.training.data.sources import DrawingSource
from stepvar_patch.cli import main


def _webp(colour: tuple[int, int, int, int], size: tuple[int, int] = (40, 20)) -> bytes:
    canvas = Image.new("RGBA", (64, 64))
    canvas.paste(Image.new("RGBA", size, colour), (3, 5))
    buffer = io.BytesIO()
    canvas.save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


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
        package = archive(cache / f"toy-{name}-1.0.0.tgz", members)
        packages.append(replace(package, name=f"@toy/{name}"))
    drawings = (DrawingSource(style="3d", form="webp", package=packages[1]),)
    monkeypatch.setattr("infinity.training.data.pack.NAMES", packages[0])
    monkeypatch.setattr("infinity.training.data.pack.DRAWINGS", drawings)
    config = str(Path(__file__).parents[3] / "configs" / "train" / "data.yaml")
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


def test_without_resvg_a_drawing_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(UserError, match=r"needs resvg-py, which is not installed"):
        render_drawing("<svg/>")
