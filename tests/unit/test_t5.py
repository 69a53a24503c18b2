"""The T5 encoder through transformers, on a tiny random checkpoint."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.processors import TemplateProcessing
from transformers import T5Config, T5EncoderModel

from infinity.config import TextEncoderConfig
from infinity.errors import UserError
from infinity.text import load_text_encoder
from infinity.text.t5 import T5Encoder

CPU = torch.device("cpu")
F32 = torch.float32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("t5")
    letters = [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *letters]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = Metaspace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": "</s>",
                "pad_token": "<pad>",
                "unk_token": "<unk>",
            }
        )
    )
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(pieces), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4
    )
    T5EncoderModel(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def encoder(folder: Path) -> T5Encoder:
    return T5Encoder.from_directory(folder, max_tokens=8, device=CPU, dtype=torch.float32)


def test_loading_is_silent(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_text_encoder(TextEncoderConfig(kind="t5", width=32, max_tokens=8), folder, CPU, F32)
    assert capfd.readouterr() == ("", "")


def test_one_row_per_token_and_the_end_token_counts(encoder: T5Encoder) -> None:
    features = encoder.encode(["cat", "", "a very long prompt indeed"])
    assert features.lengths == (5, 1, 8)
    assert features.rows.shape == (14, 32)
    assert features.rows.dtype == torch.float32


def test_the_first_prompt_that_is_cut_is_told(
    folder: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    encoder = T5Encoder.from_directory(folder, max_tokens=8, device=CPU, dtype=torch.float32)
    assert encoder.encode(["sixsix"]).lengths == (8,)
    assert not caplog.records
    encoder.encode(["sixsixs", "a very long prompt indeed"])
    (record,) = caplog.records
    assert record.getMessage().startswith("the text encoder reads 8 tokens, and prompt 'sixsixs'…")
    assert capfd.readouterr() == ("", "")


def test_a_prompt_has_the_same_features_in_any_company(encoder: T5Encoder) -> None:
    alone = encoder.encode(["cat"]).rows
    assert torch.equal(encoder.encode(["dog", "cat"]).split()[1], alone)
    assert not torch.equal(encoder.encode(["cow"]).rows, alone)


def test_padding_and_masking_as_the_original_does_changes_nothing(
    encoder: T5Encoder, folder: Path
) -> None:
    """The original runs 512 padded slots with a mask; the valid rows are the same."""
    model = T5EncoderModel.from_pretrained(folder).eval()
    ids = encoder._tokenizer("cat").input_ids
    padded = torch.zeros(1, 32, dtype=torch.long)
    padded[0, : len(ids)] = torch.tensor(ids)
    mask = (torch.arange(32) < len(ids)).long()[None]
    with torch.inference_mode():
        states = model(input_ids=padded, attention_mask=mask).last_hidden_state[0, : len(ids)]
    torch.testing.assert_close(encoder.encode(["cat"]).rows, states, atol=1e-5, rtol=0)


def test_half_precision_gives_fp32_features(folder: Path) -> None:
    half = T5Encoder.from_directory(folder, max_tokens=8, device=CPU, dtype=torch.bfloat16)
    assert half.encode(["cat"]).rows.dtype == torch.float32


def test_a_folder_without_t5_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"local copy of google/flan-t5-xl"):
        T5Encoder.from_directory(tmp_path, max_tokens=8, device=CPU, dtype=torch.float32)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be loaded"):
        T5Encoder.from_directory(tmp_path, max_tokens=8, device=CPU, dtype=torch.float32)


def test_an_incomplete_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    state = load_file(tmp_path / "model.safetensors")
    lost = [key for key in state if key.startswith("encoder.block.1.")]
    kept = {key: value for key, value in state.items() if key not in lost}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"lacks {len(lost)} tensors .* encoder\.block\.1\."):
        T5Encoder.from_directory(tmp_path, max_tokens=8, device=CPU, dtype=torch.float32)


def test_width_must_be_the_models(folder: Path) -> None:
    wanted = TextEncoderConfig(kind="t5", width=2048, max_tokens=512)
    with pytest.raises(UserError, match=r"width 32.*trained on width 2048"):
        load_text_encoder(wanted, folder, CPU, torch.float32)


@pytest.mark.gpu
def test_recorded_passes_give_the_unpadded_rows(folder: Path) -> None:
    plain = T5Encoder.from_directory(folder, max_tokens=64, device=CPU, dtype=torch.float32)
    recorded = T5Encoder.from_directory(
        folder, max_tokens=64, device=torch.device("cuda"), dtype=torch.float32
    )
    prompts = ["cat", "", "cat dog cow cat"]
    wanted = plain.encode(prompts).rows
    torch.testing.assert_close(recorded.encode(prompts).rows.cpu(), wanted, atol=1e-4, rtol=0)
    assert recorded._graphs is not None
    assert recorded._graphs.recorded
