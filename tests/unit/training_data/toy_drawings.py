"""Toy drawings in place of the training data."""

import base64
import hashlib
import io
import tarfile
from pathlib import Path

from infinity.training.data.pack import Record
from infinity.training.data.sources import Package

RECORDS = tuple(
    Record(id=f"{style}/{i}", concept=name, keywords=("food",), style=style, group="food-fruit")
    for style in ("flat", "3d")
    for i, name in enumerate(["red apple", "lemon", "grapes"])
)


def archive(path: Path, members: dict[str, bytes]) -> Package:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("package/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    return Package(
        registry="npm",
        name="@toy/set",
        version="1.0.0",
        integrity=f"sha512-{digest}",
        licence="MIT",
        credit="toy",
    )
