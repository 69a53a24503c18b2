"""Feeds damaged input to everything that parses, and counts what it survived.

    nice -n 19 python tests/reliability/fuzz.py --inputs 1000000
    python tests/reliability/fuzz.py --atheris prompts_jsonl -runs=100000

Without ``--atheris`` inputs are mutations of small valid files: flipped bits, cut, repeated and
spliced pieces, words of the format in wrong places. Whatever a parser does not understand must end
as a `UserError`; anything else, more than 10 s, or 512 MiB of growth is a failure, and the input is
kept. The last line is a JSON summary.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

from fuzz_inputs import mutate, saved, seeds
from resident import peak_mib, resident_mib, restart_peak

from infinity.errors import UserError

SLOW_S = 10
GROWTH_MIB = 512

Target = Callable[[bytes], object]


class Targets:
    """One method per parser; each takes the bytes of an untrusted file or word."""

    def __init__(self, folder: Path) -> None:
        from PIL import Image

        from infinity.checkpoint import directory, infer, lazy, official
        from infinity.io import images, prompts, rows
        from infinity.io.manifest import RunFolder
        from infinity.text import minilm
        from infinity.training import checkpoint
        from stepvar_patch.experiments import loading, replay, schema

        self.folder = folder
        self._prompts, self._rows, self._images = prompts, rows, images
        self._directory, self._lazy, self._official = directory, lazy, official
        self._infer = infer
        self._loading, self._schema, self._replay = loading, schema, replay
        self._minilm, self._checkpoint, self._run_folder = minilm, checkpoint, RunFolder
        self._base = folder / "base.yaml"
        self._base.write_text("model: m\nprompts: p.txt\noutput: out\n")
        self._picture = Image.new("RGB", (2, 2))

        (folder / "t.safetensors").write_bytes(saved(folder, "safetensors"))

    def _file(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(data)
        return path

    def _prompt_file(self, path: Path) -> None:
        rows = 0
        with contextlib.suppress(UserError):
            for row in self._prompts.read_prompts(path):
                json.dumps(row.extra).encode()
                assert (self.folder / f"{row.id}_1.png").parent == self.folder
                rows += 1
        assert self._prompts.count_prompts(path) == rows

    def prompts_txt(self, data: bytes) -> None:
        self._prompt_file(self._file("p.txt", data))

    def prompts_jsonl(self, data: bytes) -> None:
        self._prompt_file(self._file("p.jsonl", data))

    def prompts_csv(self, data: bytes) -> None:
        self._prompt_file(self._file("p.csv", data))

    def config_yaml(self, data: bytes) -> None:
        path = self._file("c.yaml", data)
        self._loading.load_config(self._schema.GenerateConfig, path)

    def overrides(self, data: bytes) -> None:
        words = [word.decode("utf-8", "replace") for word in data.split(b"\0")]
        self._loading.load_config(self._schema.GenerateConfig, self._base, words)

    def run_config(self, data: bytes) -> None:
        folder = self.folder / "run"
        folder.mkdir(exist_ok=True)
        (folder / "config.yaml").write_bytes(data)
        self._run_folder(folder, {"seed": 1, "model": "m"}, dict).__exit__(None, None, None)

    def run_manifest(self, data: bytes) -> None:
        for row in self._rows.manifest_rows(self._file("run.jsonl", data)):
            if row is not None:
                assert not self._rows.is_finished(self.folder, row)

    def model_manifest(self, data: bytes) -> None:
        folder = self._file("manifest.json", data).parent
        self._directory.listed_files(folder)
        self._directory.digest(folder)
        self._directory.load_model_config(folder)
        self._directory.text_encoder_folder(folder)
        self._directory.read_state(folder, "transformer")

    def shard_index(self, data: bytes) -> None:
        path = self._file("model.safetensors.index.json", data)
        self._official.shard_files(path.parent)

    def safetensors(self, data: bytes) -> None:
        state = self._lazy.safetensors_state([self._file("x.safetensors", data)])
        for key in state:
            state[key].nbytes  # noqa: B018
        for infer in (self._infer.infer_transformer, self._infer.infer_tokenizer):
            with contextlib.suppress(UserError):
                infer(state.shapes, self.folder)

    def pickle(self, data: bytes) -> None:
        self._lazy.load_pickle(self._file("x.pth", data))

    def training_index(self, data: bytes) -> None:
        self._checkpoint.read_index(self._file(self._checkpoint.INDEX, data).parent)

    def text_encoder_config(self, data: bytes) -> None:
        self._minilm._read_config(self._file("config.json", data))

    def png(self, data: bytes) -> None:
        path = self._file("x.png", data)
        provenance = self._images.read_png(path)[1]
        self._replay._settings(path, provenance)

    def png_text(self, data: bytes) -> None:
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_itxt(self._images.CHUNK, data.decode("utf-8", "replace"))
        path = self.folder / "y.png"
        self._picture.save(path, pnginfo=info)
        provenance = self._images.read_png(path)[1]
        json.dumps(provenance.to_json(), ensure_ascii=True)
        self._replay._settings(path, provenance)


SHARES = {
    "prompts_txt": 12,
    "prompts_jsonl": 14,
    "prompts_csv": 14,
    "config_yaml": 1,
    "overrides": 1,
    "run_config": 2,
    "run_manifest": 14,
    "model_manifest": 6,
    "shard_index": 8,
    "safetensors": 10,
    "pickle": 3,
    "training_index": 7,
    "text_encoder_config": 7,
    "png": 8,
    "png_text": 4,
}
"""How the inputs are divided, in parts; slow parsers get fewer."""


def run(inputs: int, seed: int, keep: Path, only: str | None = None) -> dict[str, Any]:
    """Counts per target; the failures' inputs are kept in ``keep``."""
    dice = random.Random(seed)
    failures: list[str] = []
    tried: dict[str, int] = {}
    shares = {only: 1} if only else SHARES
    signal.signal(signal.SIGALRM, _too_slow)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", 2) else None) as name:
        targets = Targets(Path(name))
        restart_peak()
        before_mib = resident_mib()
        for target, share in shares.items():
            parse: Target = getattr(targets, target)
            corpus = seeds(target, Path(name))
            for data in corpus[:1]:
                attempt(parse, data)
            tried[target] = -(-inputs * share // sum(shares.values()))
            for number in range(tried[target]):
                data = mutate(dice.choice(corpus), dice)
                if error := attempt(parse, data):
                    failures.append(f"{target}: {error}")
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{target}-{number}").write_bytes(data)
                    if len(failures) > 50:
                        raise SystemExit("\n".join(failures))
                if len(corpus) < 2000 and number % 50 == 0:
                    corpus.append(data)
    grown = round(peak_mib() - before_mib)
    if grown > GROWTH_MIB:
        failures.append(f"memory grew by {grown} MiB")
    return {
        "inputs": sum(tried.values()),
        "per_parser": tried,
        "failures": failures,
        "memory_growth_mib": grown,
    }


def attempt(parse: Target, data: bytes) -> str | None:
    """What went wrong with an input, if anything did."""
    signal.setitimer(signal.ITIMER_REAL, SLOW_S)
    try:
        parse(data)
    except UserError as error:
        if "\n" in str(error).strip() and " mistakes:" not in str(error):
            return f"more than one line: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return None


def _too_slow(*_: object) -> None:
    raise TimeoutError(f"took more than {SLOW_S} s")


def with_atheris(target: str, words: list[str]) -> None:
    """Coverage-guided, until libFuzzer's own options end it."""
    import atheris

    with atheris.instrument_imports(include=["infinity", "stepvar_patch", "json", "csv", "yaml"]):
        folder = tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", 2) else None)
        parse: Target = getattr(Targets(Path(folder)), target)

    def one(data: bytes) -> None:
        with contextlib.suppress(UserError):
            parse(data)

    corpus = Path(tempfile.mkdtemp())
    for number, data in enumerate(seeds(target, Path(folder))):
        (corpus / str(number)).write_bytes(data)
    atheris.Setup([sys.argv[0], *words, str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir(), "stepvar-fuzz"))
    parser.add_argument("--only", choices=SHARES)
    parser.add_argument("--atheris", choices=SHARES)
    given, rest = parser.parse_known_args()
    if given.atheris:
        with_atheris(given.atheris, rest)
    begun = time.monotonic()
    summary = run(given.inputs, given.seed, given.keep, given.only)
    print(json.dumps({**summary, "seconds": round(time.monotonic() - begun, 1)}))
    sys.exit(bool(summary["failures"]))
