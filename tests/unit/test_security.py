"""What SECURITY.md promises about code, links and the network."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from infinity.checkpoint import text_encoder_folder
from infinity.checkpoint.directory import verified
from infinity.errors import UserError

REPOSITORY = Path(__file__).parents[2]
SOURCES = sorted(
    path
    for package in ("infinity", "stepvar_patch")
    for path in (REPOSITORY / package).rglob("*.py")
)
NETWORK = {"socket", "urllib", "http", "requests", "httpx", "huggingface_hub", "ftplib", "aiohttp"}
MAY_DOWNLOAD = {"fetch.py"}
MAY_CATCH = {"lazy.py"}
CODE = {"eval", "exec", "compile", "__import__"}


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_code_from_data_and_no_network(path: Path) -> None:
    tree = ast.parse(path.read_text())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported.add(node.module.partition(".")[0])
    assert path.name in MAY_DOWNLOAD or not imported & NETWORK
    assert path.name in MAY_CATCH or not imported & {"pickle", "marshal", "shelve", "dill"}
    for name, call in calls(tree):
        keywords = {word.arg: ast.unparse(word.value) for word in call.keywords}
        assert name not in CODE, name
        assert name not in ("pickle.load", "pickle.loads", "yaml.load", "os.system", "os.popen")
        assert keywords.get("shell") != "True"
        assert keywords.get("trust_remote_code") != "True"
        if name in ("torch.load", "load") and "torch" in name:
            assert keywords.get("weights_only") == "True"
        if name.endswith(".from_pretrained") and not name.startswith("InfinityPipeline"):
            assert "local" in ast.unparse(call), "must be told to stay offline"


def model(folder: Path, name: str) -> Path:
    from infinity.io.files import file_sha256

    path = folder / name
    entry = {
        "sha256": file_sha256(path),
        "bytes": path.stat().st_size,
        "component": "text_encoder" if "/" in name else "transformer",
    }
    manifest = {"format_version": 1, "config": {}, "files": {name: entry}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_link_out_of_a_model_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    folder = tmp_path / "model"
    (folder / "text_encoder").mkdir(parents=True)
    (folder / "x.safetensors").symlink_to("../secret")
    with pytest.raises(UserError, match="lies outside the folder"):
        verified(model(folder, "x.safetensors"), ["x.safetensors"])
    (folder / "text_encoder" / "config.json").write_text("{}")
    assert text_encoder_folder(model(folder, "text_encoder/config.json"))
    (folder / "text_encoder" / "vocab.txt").symlink_to("../../secret")
    with pytest.raises(UserError, match="leads out of the model directory"):
        text_encoder_folder(folder)


def test_an_image_cannot_name_a_device_as_its_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    from infinity.io.images import Provenance, write_png
    from stepvar_patch.cli import main

    os.mkfifo(tmp_path / "pipe")
    for place in ("/dev/zero", str(tmp_path / "pipe"), "a\0b", str(tmp_path / "none")):
        provenance = Provenance(
            id="a",
            prompt="a",
            negative_prompt=None,
            seed=1,
            settings={"device": "cpu", "dtype": "float32"},
            model={"name": "m", "digest": "d", "path": place, "tokenizer": place},
            versions={},
        )
        write_png(tmp_path / "x.png", Image.new("RGB", (2, 2)), provenance)
        assert main(["replay", str(tmp_path / "x.png")]) == 2
        assert "is neither a file nor a folder" in capsys.readouterr().err


WITHOUT_NETWORK = """
import sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.bind"):
        raise SystemExit(f"network: {event} {arguments}")
sys.addaudithook(refuse)
from stepvar_patch.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.weights
def test_drawing_opens_no_connection(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a red apple, 3d style\n")
    words = ["generate", str(REPOSITORY / "configs" / "generate.yaml"), "prompts=p.txt"]
    offline = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_NETWORK, *words, "device=cpu", "output=out"],
        cwd=tmp_path,
        env=offline,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
