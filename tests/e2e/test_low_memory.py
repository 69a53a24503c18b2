"""``memory=low`` through the real command line, and what it costs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launch import finish, processes
from tiny_model import REPOSITORY, write_tiny_model

from infinity.config import Quantization, TransformerConfig
from infinity.quantize import quantize
from infinity.text.cache import CachedTextEncoder, TextCache, encoder_identity, fill
from infinity.transformer.model import InfinityTransformer
from stepvar_patch.cli import main

INTERPRETER = """
import sys
sys.path.insert(0, sys.argv[1])
from resident import peak_mib, resident_mib, restart_peak
import torch, transformers, PIL.Image, safetensors.torch
import infinity.pipeline, stepvar_patch.experiments.generate
from infinity.transformer.model import InfinityTransformer
from stepvar_patch.cli import main
restart_peak()
before = resident_mib()
code = main(sys.argv[2:])
print("MIB", before, peak_mib())
sys.exit(code)
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_tiny_model(tmp_path / "model")
    (tmp_path / "p.jsonl").write_text(
        '{"prompt": "a red apple", "negative_prompt": "a cat"}\n{"prompt": "a blue car"}\n'
    )
    (tmp_path / "c.yaml").write_text(
        "model: model\nprompts: p.jsonl\noutput: out\ndevice: cpu\nthreads: 1\n"
    )
    return tmp_path


def images(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def test_low_draws_the_same_images_and_cleans_up(work: Path) -> None:
    assert main(["generate", "c.yaml"]) == 0
    assert main(["generate", "c.yaml", "memory=low", "output=low"]) == 0
    assert images(work / "low") == images(work / "out")
    assert not (work / "low" / ".text").exists()
    assert "memory: low" in (work / "low" / "config.yaml").read_text()


def test_a_shared_cache_spares_the_encoder(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["generate", "c.yaml", "memory=low", "text_cache=features"]
    assert main(words) == 0
    kept = sorted((work / "features").rglob("*.features"))
    assert len(kept) == 3
    monkeypatch.setattr("infinity.text.load_text_encoder", lambda *_: pytest.fail("loaded"))
    assert main([*words, "output=again"]) == 0
    assert images(work / "again") == images(work / "out")
    monkeypatch.undo()
    monkeypatch.chdir(work)
    kept[0].write_bytes(kept[0].read_bytes()[:-1])
    assert main([*words, "output=third"]) == 0
    assert images(work / "third") == images(work / "out")


def test_processes_share_the_encoding(work: Path) -> None:
    assert main(["generate", "c.yaml", "output=one"]) == 0
    ended = finish(processes(work, 2, ["generate", "c.yaml", "memory=low"]))
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert images(work / "out") == images(work / "one")


def test_features_come_back_to_the_bit(tmp_path: Path) -> None:
    cache = TextCache(tmp_path, "x" * 64)

    class Encoder:
        width, max_tokens, calls = 3, 9, 0

        def encode(self, prompts):  # type: ignore[no-untyped-def]
            from infinity.text import TextFeatures

            self.calls += len(prompts)
            rows = torch.randn(len(prompts[0]), 3)
            made = rows if prompts[0] == "full" else rows.bfloat16().float()
            kept[prompts[0]] = made
            return TextFeatures.stack([made])

    kept: dict[str, torch.Tensor] = {}
    assert fill(cache, Encoder(), ["full", "half", "full"]) == 2
    found = CachedTextEncoder(cache, width=3, max_tokens=9).encode(["half", "full"])
    assert torch.equal(found.split()[0], kept["half"])
    assert torch.equal(found.split()[1], kept["full"])
    assert cache.get("other") is None
    (tmp_path / "a").write_bytes(b"1")
    words = (torch.float32, "cpu", 64)
    one = encoder_identity(tmp_path, *words)
    half, full = torch.bfloat16, torch.float32
    for other in ((half, "cpu", 64), (full, "cuda", 64), (full, "cpu", 9)):
        assert one != encoder_identity(tmp_path, *other)
    (tmp_path / "a").write_bytes(b"2")
    assert one != encoder_identity(tmp_path, *words)


def test_doctor_predicts_memory(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["doctor", "c.yaml", "--json", "--shape", "infinity-2b"]
    for gib, batch, told in (
        ("11", 1, "memory=low fits the card's 11.0 GiB, up to batch_size = 1"),
        ("80", 4, "memory=auto fits the card's 80.0 GiB, up to batch_size = 1"),
        ("12", 4, "hold only batch_size = 1 with memory=low"),
        ("4", 1, "are too little for one image"),
    ):
        assert main([*words, "--card-gib", gib, f"batch_size={batch}"]) == 0
        memory = json.loads(capsys.readouterr().out)["memory"]
        assert told in memory["advice"]
        assert memory["peak_low"] < memory["peak_auto"]


@pytest.mark.weights
@pytest.mark.parametrize("memory", ["auto", "low"])
def test_the_embedded_model_needs_less_than_a_gibibyte(tmp_path: Path, memory: str) -> None:
    """Above what the interpreter needs with its libraries."""
    (tmp_path / "p.txt").write_text("a red apple, 3d style\n")
    words = ["generate", str(REPOSITORY / "configs" / "generate.yaml"), f"memory={memory}"]
    command = [
        sys.executable,
        "-c",
        INTERPRETER,
        str(Path(__file__).parent),
        *words,
        "prompts=p.txt",
        "output=out",
    ]
    ended = subprocess.run(
        [*command, "device=cpu"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    before, after = map(float, ended.stdout.split("MIB")[1].split())
    assert 10 < after - before < 1024
    print(f"{memory}: {before:.0f} MiB with its libraries, {after - before:.0f} MiB above")


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_quantised_matrices_are_recorded_and_replayed(
    work: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    pytest.importorskip("torchao.quantization")
    assert main(["generate", "c.yaml"]) == 0
    words = ["generate", "c.yaml", f"quantize={kind}"]
    assert main([*words, "output=small"]) == 0
    assert main([*words]) == 2
    assert "quantize was null" in capsys.readouterr().err
    name = sorted(path.name for path in (work / "small").glob("0000*.png"))[0]
    assert images(work / "small")[name] != images(work / "out")[name]
    assert main(["replay", f"small/{name}"]) == 0
    assert "identical pixels" in capsys.readouterr().out


@pytest.mark.parametrize(("kind", "kept"), [("int8", torch.int8), ("fp8", torch.float8_e4m3fn)])
def test_quantised_matrices_are_what_they_are_called(kind: Quantization, kept: torch.dtype) -> None:
    pytest.importorskip("torchao.quantization")
    config = TransformerConfig(depth=1, width=64, heads=2, block_chunks=1, codebook_dim=4)
    model = InfinityTransformer(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    before = model.blocks[0].ffn.fc1.weight.detach().clone()
    quantize(model, kind)
    after = model.blocks[0].ffn.fc1.weight
    assert after.qdata.dtype == kept
    step = before.abs().amax(1, keepdim=True) / 254 if kind == "int8" else before.abs() / 16
    assert ((after.dequantize() - before).abs() <= 1.01 * step + 1e-3).all()
    assert type(model.head.weight) is torch.nn.Parameter


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_quantising_without_torchao_is_told(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    monkeypatch.setattr("stepvar_patch.experiments.check.find_spec", lambda name: None)
    assert main(["generate", "c.yaml", f"quantize={kind}"]) == 2
    assert f"{kind} needs torchao" in capsys.readouterr().err
    assert not Path("out").exists()
    monkeypatch.setattr("stepvar_patch.experiments.check.find_spec", lambda name: True)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    assert main(["generate", "c.yaml", f"quantize={kind}"]) == 2
    assert f"{kind} needs torchao" in capsys.readouterr().err


def test_other_verbs_refuse_what_only_generate_does(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pruned = f"pruning={REPOSITORY}/configs/pruning/stepvar_balanced.yaml"
    assert main(["show-masks", "c.yaml", pruned, "memory=low"]) == 2
    assert "memory and quantize are for stepvar generate" in capsys.readouterr().err
