"""Which code made something: commit and digest of the source files."""

import hashlib
import subprocess
from pathlib import Path
from typing import Any


def code_version() -> dict[str, Any]:
    """``commit`` of this code and whether files differ from it (``dirty``), None outside a git
    checkout; ``code_sha256`` of the source files, which tells the code apart where git cannot.
    """
    folder = Path(__file__).parent
    commit = told(["git", "-C", str(folder), "rev-parse", "HEAD"])
    status = told(["git", "-C", str(folder), "status", "--porcelain"])
    return {
        "commit": commit or None,
        "dirty": None if status is None else bool(status),
        "code_sha256": _code_digest(),
    }


def told(words: list[str]) -> str | None:
    """What a program prints; None if it is missing or fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _code_digest() -> str:
    root = Path(__file__).parents[2]
    digest = hashlib.sha256()
    rooms = (root / "infinity", root / "stepvar_patch")
    for path in sorted(path for room in rooms for path in room.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()
