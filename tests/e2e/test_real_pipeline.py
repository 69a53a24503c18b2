"""The command line on the real pipeline: a tiny random model, and the one in weights/ if there."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_model import CONFIG, REPOSITORY, write_tiny_model

from infinity.checkpoint import digest, source_digest
from infinity.config import TokenizerConfig
from infinity.io.images import read_png
from infinity.tokenizer.autoencoder import BSQTokenizer
from stepvar_patch.cli import main

needs_weights = pytest.mark.skipif(
    not (REPOSITORY / "weights" / "manifest.json").exists(),
    reason="weights/ holds no trained model yet",
)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    transformer = write_tiny_model(tmp_path / "model")
    torch.save(transformer.state_dict(), tmp_path / "transformer.pth")
    (tmp_path / "p.txt").write_text("a red apple\na blue car\nthree cats\n")
    (tmp_path / "c.yaml").write_text("model: model\nprompts: p.txt\noutput: out\ndevice: cpu\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def images(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def test_generate_resume_and_replay(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "c.yaml", "preview=true"]) == 0
    whole = images(work / "out")
    assert len(whole) == 7
    pictures = [name for name in whole if name.startswith("0000") and "preview" not in name]
    with Image.open(work / "out" / pictures[0]) as image:
        assert image.size == (32, 32)
    (work / "out" / pictures[1]).unlink()
    assert main(["generate", "c.yaml", "preview=true", "batch_size=3"]) == 0
    assert images(work / "out") == whole
    lines = (work / "out" / "run.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["00001", "00002", "00003"]
    row = json.loads(lines[-1])
    assert {"text", "scales", "decode", "preview", "write"} == row["ms"].keys()
    assert min(row["ms"].values()) >= 0
    assert main(["replay", f"out/{pictures[2]}"]) == 0
    assert "identical pixels" in capsys.readouterr().out


def test_another_resolution_is_drawn_recorded_and_replayed(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (work / "p.txt").write_text("a red apple\n")
    words = ["resolution=0.25M", "aspect_ratio=2", f"temperature={[1] * 10}"]
    assert main(["generate", "c.yaml", *words]) == 0
    (picture,) = (work / "out").glob("0*.png")
    image, provenance = read_png(picture)
    assert image.size == (46, 92)
    assert provenance.settings["resolution"] == "0.25M"
    assert main(["replay", str(picture)]) == 0
    assert "identical pixels" in capsys.readouterr().out
    assert main(["generate", "c.yaml", *words, "resolution=0.06M"]) == 2
    assert 'resolution was "0.25M", now "0.06M"' in capsys.readouterr().err
    assert main(["generate", "c.yaml", "resolution=2M", "height=32", "width=30"]) == 2
    assert "'0.06M', '0.25M', '0.60M' or '1M'" in capsys.readouterr().err


def damage(work: Path, name: str) -> None:
    path = work / "model" / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def other_tokenizer(work: Path) -> None:
    config = TokenizerConfig(codebook_dim=8, patch_size=2, channels=32, channel_multipliers=(1, 1))
    torch.save({"vae": BSQTokenizer(config).state_dict()}, work / "vae.pth")


@pytest.mark.parametrize(
    ("arrange", "words", "told"),
    [
        (lambda w: damage(w, "transformer-00001.safetensors"), [], "transformer-00001.safetensors"),
        (lambda w: damage(w, "tokenizer-00001.safetensors"), [], "tokenizer-00001.safetensors"),
        (
            lambda w: (w / "model" / "transformer-00001.safetensors").unlink(),
            [],
            "transformer-00001.safetensors: missing",
        ),
        (lambda w: None, ["height=33", "width=32"], "height × width is 33 × 32; allowed: 32 × 32"),
        (
            lambda w: (w / "vae.pth").write_bytes(b"no weights"),
            ["model=transformer.pth", "tokenizer=vae.pth"],
            "vae.pth",
        ),
        (other_tokenizer, ["model=transformer.pth", "tokenizer=vae.pth"], "vae.pth"),
        (lambda w: None, ["model=transformer.pth"], "tokenizer=FILE"),
    ],
)
def test_bad_weights_are_one_sentence_and_code_2(
    work: Path, capsys: pytest.CaptureFixture[str], arrange, words: list[str], told: str
) -> None:
    arrange(work)
    assert main(["generate", "c.yaml", *words]) == 2
    err = capsys.readouterr().err
    assert told in err
    assert "Traceback" not in err
    assert not list((work / "out").glob("*.png"))


def test_a_converted_model_replays_what_its_files_drew_and_the_other_way_round(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    torch.save({"vae": BSQTokenizer(CONFIG.tokenizer).state_dict()}, "vae.pth")
    encoder = str(REPOSITORY / "weights" / "text_encoder")
    (work / "p.txt").write_text("a red apple\n")
    for output, more in (("same", []), ("other", ["--dtype", "bfloat16"])):
        words = ["transformer.pth", "vae.pth", "--output", output, "--text-encoder", encoder]
        assert main(["convert", *words, *more]) == 0
    in_place = ["model=transformer.pth", "tokenizer=vae.pth", "guidance_scale=1"]
    shutil.copytree(encoder, "own")
    assert main(["generate", "c.yaml", *in_place, "text_encoder=own"]) == 0
    shutil.rmtree("own")
    (picture,) = Path("out").glob("0*.png")
    assert read_png(picture)[1].model["digest"] == source_digest(Path("same"))
    capsys.readouterr()
    assert main(["replay", str(picture), "--model", "same"]) == 0
    assert main(["generate", "c.yaml", "model=same", "guidance_scale=1", "output=again"]) == 0
    (again,) = Path("again").glob("0*.png")
    assert read_png(again)[1].model["digest"] == digest(Path("same"))
    files = ["--model", "transformer.pth", "--tokenizer", "vae.pth", "--text-encoder", encoder]
    assert main(["replay", str(again), *files]) == 0
    assert capsys.readouterr().out.count("identical pixels") == 2
    assert main(["replay", str(picture), "--model", "other"]) == 2
    manifest = json.loads(Path("same/manifest.json").read_text())
    manifest["config"]["sampling"]["top_k"] = 1
    Path("same/manifest.json").write_text(json.dumps(manifest))
    assert main(["replay", str(picture), "--model", "same"]) == 2
    assert capsys.readouterr().err.count("name the right model with --model") == 2


@pytest.mark.weights
@needs_weights
def test_the_embedded_model_draws_an_image_alone_as_among_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("a red apple, 3d style\na cactus on a yellow background\n")
    config = str(REPOSITORY / "configs" / "generate.yaml")
    words = ["generate", config, "prompts=p.txt", "device=cpu"]
    assert main([*words, "output=all"]) == 0
    (name,) = (p.name for p in (tmp_path / "all").glob("00002_*.png"))
    with Image.open(tmp_path / "all" / name) as image:
        assert image.size == (256, 256)
        red, green, blue = image.convert("RGB").getpixel((3, 3))
    assert min(red, green) > blue + 40, "the background is not yellow"
    assert main(["replay", f"all/{name}"]) == 0
    assert "identical pixels" in capsys.readouterr().out


def test_threads_are_kept_on_resume_and_replay(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = torch.get_num_threads()
    assert main(["generate", "c.yaml", "threads=1"]) == 0
    whole = images(work / "out")
    assert "threads: 1\n" in (work / "out" / "config.yaml").read_text()
    try:
        torch.set_num_threads(2)
        name = next(iter(whole))
        (work / "out" / name).unlink()
        assert main(["generate", "c.yaml"]) == 0
        assert images(work / "out") == whole
        assert main(["generate", "c.yaml", "threads=2"]) == 2
        assert "threads was 1, now 2" in capsys.readouterr().err
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
