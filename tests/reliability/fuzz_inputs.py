"""What the fuzzer feeds: small valid inputs of every parser, and ways to damage them."""

import hashlib
import json
import random
from pathlib import Path
from typing import Any


def seeds(name: str, folder: Path) -> list[bytes]:
    """Small valid inputs of a target."""
    provenance = {
        "id": "a",
        "prompt": "ein Bär",
        "negative_prompt": None,
        "seed": 7,
        "settings": {"guidance_scale": [1, 2.5], "device": "cpu", "dtype": "float32"},
        "model": {"name": "m", "digest": "d", "path": "weights"},
        "versions": {"torch": "2"},
        "extra": {"k": [1]},
    }
    row = {**provenance, "file": "a_7.png", "sha256": "0" * 64, "weights": "w", "ms": {"text": 1}}
    for key in ("settings", "model", "versions"):
        del row[key]
    shard = saved(folder, "safetensors")
    digest = hashlib.sha256(shard).hexdigest()
    entry = {"sha256": digest, "bytes": len(shard), "component": "transformer"}
    text = json.dumps(provenance).encode()
    given: dict[str, list[bytes]] = {
        "prompts_txt": ["a red apple\n\nein Bär\r\n".encode(), b"\xef\xbb\xbfx\n"],
        "prompts_jsonl": [
            b'{"prompt": "a", "id": "x", "seed": 3, "k": [1.5, null]}\n{"prompt": "b"}\n'
        ],
        "prompts_csv": [b'id,prompt,seed,k\nx,"a ""b""\nc",3,\n,d,,\n'],
        "config_yaml": [
            b"model: ${here}/m\nprompts: p.txt\noutput: ${model}\nguidance_scale: [1, 2.5]\n"
            b"pruning: &p {kind: dense, scales: {'-1': {run: false}}}\n",
            (Path(__file__).parents[2] / "configs" / "generate.yaml").read_bytes(),
        ],
        "overrides": [b"seed=3\0guidance_scale=[1,2]", b"pruning={kind: dense}\0pruning.kind=x"],
        "run_config": [b"seed: 1\nmodel: m\n"],
        "run_manifest": [json.dumps(row).encode() + b"\n"],
        "model_manifest": [
            json.dumps(
                {"format_version": 1, "config": _model_config(), "files": {"t.safetensors": entry}}
            ).encode()
        ],
        "shard_index": [b'{"weight_map": {"a.b": "t.safetensors"}}'],
        "safetensors": [saved(folder, "safetensors")],
        "pickle": [saved(folder, "pickle")],
        "training_index": [
            b'{"state": "full", "steps": 3, "seconds": 1.5, "warm_steps": 3, "ema_steps": 2}'
        ],
        "text_encoder_config": [b'{"bert": {"hidden_size": 384}, "shards": ["m.safetensors"]}'],
        "png": [_png(folder, provenance)],
        "png_text": [text],
    }
    return given[name]


def _model_config() -> dict[str, Any]:
    from dataclasses import asdict

    from infinity.config import PRESETS

    return asdict(PRESETS["embedded"])


def saved(folder: Path, kind: str) -> bytes:
    """A small state dict as a safetensors file or a pickle."""
    import torch
    from safetensors.torch import save

    state = {"a.b": torch.ones(2, 3), "c": torch.arange(4)}
    if kind == "safetensors":
        return save(state)
    torch.save({"trainer": {"gpt": state}, "epoch": 3}, folder / "seed.pth")
    return (folder / "seed.pth").read_bytes()


def _png(folder: Path, provenance: dict[str, Any]) -> bytes:
    from PIL import Image

    from infinity.io.images import Provenance, write_png

    write_png(folder / "s.png", Image.new("RGB", (3, 2)), Provenance.from_json(provenance))
    return (folder / "s.png").read_bytes()


WORDS = [
    *(b"null true NaN Infinity -1 0 1e999 1e-999 .inf ~ ' \" { } [ ] : , # & * ! | > % @".split()),
    *(b"\n", b"\r", b"\0", b"\t", b" ", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\\ud800"),
    *(b"../", b"/etc/passwd", b"${", b"${here}", b"${oc.env:HOME}", b"<<: *p\n", b"&p ", b"*p"),
    *(b"9" * 5000, b"[" * 2000, b"{" * 500, b'"a":' * 300, b"- " * 300, b"!!python/object:os "),
    *("\u2028", "\u202e", "é", "e\u0301", "𝕏"),
    *(b"18446744073709551616", b"-9223372036854775809", b"0x1F", b"2001-13-99", b"1:60:60"),
    *(b"kind", b"prompt", b"id", b"seed", b"data_offsets", b"shape", b"dtype", b"__metadata__"),
]
WORDS = [word.encode() if isinstance(word, str) else word for word in WORDS]


def mutate(data: bytes, dice: random.Random) -> bytes:
    """One to a few random changes."""
    out = bytearray(data)
    for _ in range(dice.choice((1, 1, 1, 2, 3, 8))):
        at = dice.randrange(len(out) + 1)
        length = min(len(out) - at, dice.choice((1, 1, 2, 4, 16, 64)))
        what = dice.randrange(7)
        if what == 0 and at < len(out):
            out[at] ^= 1 << dice.randrange(8)
        elif what == 1 and at < len(out):
            out[at] = dice.randrange(256)
        elif what == 2:
            del out[at : at + length]
        elif what == 3:
            out[at:at] = dice.choice(WORDS)
        elif what == 4:
            out[at : at + length] = dice.choice(WORDS)
        elif what == 5:
            out[at:at] = out[at : at + length] * dice.choice((1, 2, 50))
        else:
            other = dice.randrange(len(out) + 1)
            out[at:at] = out[other : other + length]
    return bytes(out[: 1 << 16])
