"""``stepvar layout``: official prompts in, a run, its export, and the same pictures back."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_pipeline import write_model_directory
from PIL import Image, ImageChops
from runs import stepvar

from stepvar_patch.experiments.benchmarks import LAYOUTS


def geneval_file(folder: Path) -> Path:
    rows = [
        {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a bench"},
        {
            "tag": "position",
            "include": [
                {"class": "dog", "count": 1},
                {"class": "cat", "count": 1, "position": ["left of", 0]},
            ],
            "prompt": "a cat left of a dog",
        },
    ]
    path = folder / "evaluation_metadata.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def dpg_folder(folder: Path) -> Path:
    path = folder / "prompts"
    path.mkdir()
    (path / "0.txt").write_text("a long prompt\nover two lines")
    (path / "partiprompts12.txt").write_text("another")
    return path


def mjhq_file(folder: Path) -> Path:
    path = folder / "meta_data.json"
    path.write_text(
        json.dumps(
            {
                "81a01cb3": {"category": "animals", "prompt": "a cat"},
                "91b02dc4": {"category": "food", "prompt": "a pie"},
            }
        )
    )
    return path


def hpsv2_folder(folder: Path) -> Path:
    path = folder / "benchmark"
    path.mkdir()
    for style in ("anime", "concept-art", "paintings", "photo"):
        (path / f"{style}.json").write_text(json.dumps([f"{style} one", f"{style} two"]))
    return path


def coco_file(folder: Path) -> Path:
    path = folder / "captions_val2014.json"
    captions = [
        {"image_id": 9, "id": 5, "caption": "second caption of nine"},
        {"image_id": 9, "id": 3, "caption": "first caption of nine"},
        {"image_id": 2, "id": 8, "caption": "of two"},
    ]
    path.write_text(json.dumps({"images": [], "annotations": captions}))
    return path


SOURCES: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "geneval": (
        geneval_file,
        [
            *("00000/metadata.jsonl", "00000/samples/0000.png", "00000/samples/0001.png"),
            *("00000/samples/0002.png", "00000/samples/0003.png", "00001/metadata.jsonl"),
            *(f"00001/samples/000{k}.png" for k in range(4)),
        ],
    ),
    "dpg": (dpg_folder, ["0.png", "partiprompts12.png"]),
    "mjhq": (mjhq_file, ["animals/81a01cb3.png", "food/91b02dc4.png"]),
    "hpsv2": (
        hpsv2_folder,
        [
            f"{s}/0000{i}.jpg"
            for s in ("anime", "concept-art", "paintings", "photo")
            for i in (0, 1)
        ],
    ),
    "coco": (coco_file, ["000000000002.png", "000000000009.png"]),
}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_model_directory(tmp_path / "model")
    (tmp_path / "c.yaml").write_text(
        "model: model\nprompts: p.jsonl\noutput: run\ndevice: cpu\ncontact_sheet: false\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def exported(work: Path, name: str) -> Path:
    source = SOURCES[name][0](work)
    assert stepvar("layout", "prompts", name, str(source), "p.jsonl") == 0
    number = LAYOUTS[name].images
    assert stepvar("generate", "c.yaml", f"images_per_prompt={number}") == 0
    assert stepvar("layout", "export", name, str(source), "run", "out") == 0
    assert stepvar("layout", "check", name, str(source), "out") == 0
    return source


@pytest.mark.parametrize("name", SOURCES)
def test_every_layout_round_trips(work: Path, name: str) -> None:
    source = exported(work, name)
    files = [p.relative_to("out").as_posix() for p in Path("out").rglob("*") if p.is_file()]
    assert sorted(files) == sorted(SOURCES[name][1])
    layout = LAYOUTS[name]
    for row in layout.prompts(source):
        pictures = layout.read(Path("out"), row)
        drawn = sorted(
            Path("run").glob(f"{row.id}_*.png"), key=lambda p: int(p.stem.rpartition("_")[2])
        )
        assert len(pictures) == len(drawn) == layout.images
        for picture, path in zip(pictures, drawn, strict=True):
            with Image.open(path) as original:
                difference = ImageChops.difference(picture, original.convert("RGB"))
            most = max(high for _, high in difference.getextrema())
            assert most <= (64 if name == "hpsv2" else 0)


def test_the_metadata_of_geneval_is_the_official_line(work: Path) -> None:
    source = exported(work, "geneval")
    lines = source.read_text().splitlines()
    assert json.loads(Path("out/00001/metadata.jsonl").read_text()) == json.loads(lines[1])


def test_coco_takes_the_first_caption_of_every_image(work: Path) -> None:
    exported(work, "coco")
    rows = [json.loads(line) for line in Path("p.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["of two", "first caption of nine"]


def test_an_incomplete_folder_names_what_is_missing(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = exported(work, "geneval")
    Path("out/00001/samples/0002.png").unlink()
    assert stepvar("layout", "check", "geneval", str(source), "out") == 2
    assert "1 files are missing: 00001/samples/0002.png" in capsys.readouterr().err


def test_a_run_with_too_few_pictures_is_not_exported(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = geneval_file(work)
    assert stepvar("layout", "prompts", "geneval", str(source), "p.jsonl") == 0
    assert stepvar("generate", "c.yaml") == 0
    assert stepvar("layout", "export", "geneval", str(source), "run", "out") == 2
    assert "lacks pictures of 00000 (1 of 4), 00001 (1 of 4)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["prompts", "genval", "x", "p.jsonl"], "benchmark 'genval' is unknown; valid are geneval"),
        (["prompts", "geneval", "nowhere", "p.jsonl"], "nowhere: cannot be read"),
        (["prompts", "dpg", "nowhere", "p.jsonl"], "nowhere: is no folder of .txt prompts"),
        (["prompts", "mjhq", "bad.json", "p.jsonl"], "bad.json: not JSON"),
        (["prompts", "mjhq", "sky.json", "p.jsonl"], "category must be one of animals"),
        (["prompts", "coco", "sky.json", "p.jsonl"], "sky.json: has no list 'annotations'"),
        (["prompts", "hpsv2", "nowhere", "p.jsonl"], "anime.json: cannot be read"),
        (["prompts", "mjhq", "up.json", "p.jsonl"], "id '../up'"),
        (["prompts", "mjhq", "sky.json", "p.txt"], "p.txt: must end with .jsonl"),
        (
            ["geneval", "nowhere", "--detector", "d", "--clip", "c"],
            "c: no such folder; give the folder of a CLIP",
        ),
    ],
)
def test_a_mistake_is_one_sentence(
    work: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (work / "bad.json").write_text("{")
    (work / "sky.json").write_text(json.dumps({"a": {"category": "sky", "prompt": "x"}}))
    (work / "up.json").write_text(json.dumps({"../up": {"category": "food", "prompt": "x"}}))
    assert stepvar("layout", *words) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error
