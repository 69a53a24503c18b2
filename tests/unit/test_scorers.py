"""Runs scored with networks from local files: random weights, the real loading and arithmetic."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_geneval_rules import write_tiny_detector
from test_metric_networks import as_open_clip, image_reward_state, lpips_files

from infinity.errors import UserError
from infinity.io.rows import ImageRow
from stepvar_patch.cli import main
from stepvar_patch.experiments.estimate import Estimate
from stepvar_patch.experiments.evaluate.arms import DrawnArm
from stepvar_patch.experiments.evaluate.scoring import Scoring, evaluate
from stepvar_patch.experiments.metrics import image_reward
from stepvar_patch.experiments.metrics.clip import Clip
from stepvar_patch.experiments.metrics.inception import Inception
from stepvar_patch.experiments.metrics.psnr import psnr
from stepvar_patch.experiments.scorers.base import MetricFiles

PROMPTS = ["a red cat", "a blue dog", "a green cat"]


def arm(folder: Path, seed: int) -> DrawnArm:
    folder.mkdir()
    rng, rows = np.random.default_rng(seed), []
    for i, prompt in enumerate(PROMPTS):
        pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}_0.png")
        ms = {"text": 1.0, "scales": 10.0 * (2 - seed), "decode": 1.0}
        rows.append(
            ImageRow(
                id=str(i),
                seed=0,
                prompt=prompt,
                negative_prompt=None,
                file=f"{i}_0.png",
                sha256=f"{seed}{i}",
                weights="w",
                ms=ms,
            )
        )
    return DrawnArm(label=folder.name, folder=folder, rows=tuple(rows), made=3)


def write_tokenizer(folder: Path, words: list[str]) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    listed = ["[PAD]", *words, "[BOS]", "[EOS]"]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(listed)}, unk_token="[PAD]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[BOS]", len(listed) - 2), ("[EOS]", len(listed) - 1)]
    inner.post_processor = processors.TemplateProcessing("[BOS] $A [EOS]", None, ends)
    PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]").save_pretrained(folder)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> MetricFiles:
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    tower |= {"num_attention_heads": 16, "hidden_act": "gelu"}
    text = {**tower, "vocab_size": 20, "max_position_embeddings": 9}
    clip = CLIPModel(
        CLIPConfig(
            text_config={**text, "eos_token_id": 19, "bos_token_id": 18},
            vision_config={**tower, "image_size": 28, "patch_size": 14},
            projection_dim=16,
        )
    )
    clip.save_pretrained(folder / "clip")
    words = ["a", "red", "blue", "green", "cat", "dog", *(f"w{i}" for i in range(11))]
    write_tokenizer(folder / "clip", words)
    torch.save({"state_dict": as_open_clip(clip)}, folder / "hps.pt")
    torch.save(image_reward_state(), folder / "reward.pt")
    write_tokenizer(folder / "bert", words)
    torch.save(Inception().state_dict(), folder / "inception.pth")
    backbone, heads = lpips_files(folder)
    (folder / "real" / "inner").mkdir(parents=True)
    for i in range(4):
        pixels = np.random.default_rng(9 + i).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "real" / "inner" / f"{i}.jpg")
    return MetricFiles(
        drawings=str(folder / "no.zip"),
        lpips_backbone=str(backbone),
        lpips_heads=str(heads),
        inception=str(folder / "inception.pth"),
        real_images=str(folder / "real"),
        clip=str(folder / "clip"),
        hps=str(folder / "hps.pt"),
        image_reward=str(folder / "reward.pt"),
        bert=str(folder / "bert"),
    )


@pytest.fixture(autouse=True)
def small_image_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_reward, "_VISION_HEADS", 2)
    monkeypatch.setattr(image_reward, "_TEXT_HEADS", 2)
    monkeypatch.setattr(image_reward, "_TEXT_TOKENS", 10)


def test_every_metric_with_files_has_a_value(files: MetricFiles, tmp_path: Path) -> None:
    scoring = Scoring(files=files, cache=tmp_path / "cache")
    dense, pruned = arm(tmp_path / "dense", 0), arm(tmp_path / "pruned", 1)
    found = evaluate(pruned, dense, scoring)
    known = {name: e for name, e in found.items() if e.value is not None}
    assert known.keys() >= {
        *("psnr_db", "ssim", "lpips", "fid", "kid", "inception_score", "clip_score", "clip_fid"),
        *("hps", "image_reward", "ms", "speedup", "loop_speedup"),
    }
    assert all(np.isfinite(e.value) for e in known.values())
    assert found["name_rank"].missing.startswith("missing: files.drawings")
    assert known["loop_speedup"].value == 2
    assert known["speedup"].value == pytest.approx(22 / 12)
    assert known["inception_score"].value >= 1
    assert known["fid"].value > 0
    assert len(list((tmp_path / "cache").glob("real-*.safetensors"))) == 2

    a, b = (torch.from_numpy(np.array(Image.open(tmp_path / d / "0_0.png"))).permute(2, 0, 1)
            for d in ("pruned", "dense"))  # fmt: skip
    first = replace(pruned, rows=pruned.rows[:1])
    alone = evaluate(first, dense, replace(scoring, files=replace(files, inception="no")))
    expected = float(psnr(a[None] / 255, b[None] / 255))
    assert alone["psnr_db"] == Estimate(value=pytest.approx(expected), n=1)


def test_pictures_that_are_the_real_ones_have_no_distance(
    files: MetricFiles, tmp_path: Path
) -> None:
    pictures = arm(tmp_path / "same", 0)
    mine = replace(files, real_images=str(pictures.folder), hps="no", image_reward="no")
    found = evaluate(pictures, None, Scoring(files=mine, cache=tmp_path / "cache"))
    assert found["fid"].value == pytest.approx(0, abs=1e-4)
    assert found["clip_fid"].value == pytest.approx(0, abs=1e-4)


def test_statistics_that_were_cut_off_are_made_again(files: MetricFiles, tmp_path: Path) -> None:
    pictures = arm(tmp_path / "same", 0)
    (pictures.folder / "dead.png").symlink_to(tmp_path / "nowhere")
    mine = replace(files, real_images=str(pictures.folder), hps="no", image_reward="no", clip="no")
    found = evaluate(pictures, None, Scoring(files=mine, cache=tmp_path / "cache"))
    (kept,) = (tmp_path / "cache").glob("real-*.safetensors")
    kept.write_bytes(kept.read_bytes()[:100])
    again = evaluate(replace(pictures, label="x"), None, Scoring(files=mine, cache=kept.parent))
    assert again["fid"] == found["fid"]


def test_clipscore_is_a_hundred_times_the_cosine_but_not_below_zero(
    files: MetricFiles, tmp_path: Path
) -> None:
    pictures = arm(tmp_path / "run", 0)
    mine = replace(files, inception="no", hps="no", image_reward="no")
    found = evaluate(pictures, None, Scoring(files=mine, cache=tmp_path / "cache"))
    clip = Clip.load(files.clip, "cpu")
    images = np.stack([np.array(Image.open(tmp_path / "run" / f"{i}_0.png")) for i in range(3)])
    cosines = (clip.images(torch.from_numpy(images)) * clip.texts(PROMPTS)).sum(-1)
    assert found["clip_score"].value == pytest.approx(float(100 * cosines.clamp_min(0).mean()))


def test_a_folder_without_real_pictures_is_refused(files: MetricFiles, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    mine = replace(files, inception="no", hps="no", image_reward="no", real_images=str(empty))
    scoring = Scoring(files=mine, cache=tmp_path)
    with pytest.raises(UserError, match="holds 0 pictures; give at least 2"):
        evaluate(arm(tmp_path / "run", 0), None, scoring)


def test_scores_are_made_again_when_a_file_arrives(files: MetricFiles, tmp_path: Path) -> None:
    pictures = arm(tmp_path / "run", 0)
    late = tmp_path / "inception.pth"
    some = replace(files, clip="no", hps="no", image_reward="no", inception=str(late))
    scoring = Scoring(files=some, cache=tmp_path)
    assert evaluate(pictures, None, scoring)["inception_score"].missing
    late.symlink_to(files.inception)
    assert evaluate(pictures, None, scoring)["inception_score"].value


def test_a_geneval_folder_is_scored_from_the_command_line(
    files: MetricFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    detector = write_tiny_detector(tmp_path / "detector", 80)
    samples = tmp_path / "g" / "00000" / "samples"
    samples.mkdir(parents=True)
    for k in range(4):
        Image.new("RGB", (32, 32), "red").save(samples / f"{k:04d}.png")
    rule = {"class": "cat", "count": 1, "color": "red"}
    metadata = {"tag": "colors", "include": [rule], "prompt": "a red cat"}
    (samples.parent / "metadata.jsonl").write_text(json.dumps(metadata))
    words = ["layout", "geneval", str(tmp_path / "g")]
    assert main([*words, "--detector", str(detector), "--clip", files.clip, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tasks"] == {"colors": 0.0}
    assert main([*words, "--detector", "d", "--clip", "c", "--device", "tpu"]) == 2
    assert "device is 'tpu'" in capsys.readouterr().err
    (samples.parent / "metadata.jsonl").write_bytes(b"\xff")
    assert main([*words, "--detector", str(detector), "--clip", files.clip]) == 2
    assert "metadata.jsonl: cannot be read" in capsys.readouterr().err
    (samples.parent / "metadata.jsonl").write_text(json.dumps(metadata))
    (samples / "0003.png").unlink()
    assert main([*words, "--detector", str(detector), "--clip", files.clip]) == 2
    assert "1 files are missing: 00000/samples/0003.png" in capsys.readouterr().err
