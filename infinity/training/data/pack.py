"""One compact file with every training drawing, as SVG text or WebP, and its record.

The pack is a plain zip: ``records.jsonl.xz``, ``svg.jsonl.xz`` (one JSON string per SVG record, in
record order) and ``webp/<row>.webp`` for the rest. It is what travels to a training machine
without network.
"""

import hashlib
import io
import json
import logging
import lzma
import re
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from infinity.errors import Mistakes, UserError, collecting
from infinity.io.files import check_writable
from infinity.training.data.concepts import Concept, normalise_hexcode, read_concepts
from infinity.training.data.fetch import PACKAGE_CACHE, fetch, read_members
from infinity.training.data.sources import DRAWINGS, NAMES, DrawingSource

logger = logging.getLogger(__name__)

PACK_FOLDER = Path(".data/embedded")
PACK_NAME = "drawings.zip"
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is known of one drawing.

    Attributes:
        id: ``style/code-points``, unique.
        concept: clean lower-case CLDR name, shared by all styles.
        keywords: other words for it, none contained in the name.
        style: the style word of its set.
        group: emojibase subgroup, such as ``food-fruit``.
    """

    id: str
    concept: str
    keywords: tuple[str, ...]
    style: str
    group: str


@dataclass(frozen=True, kw_only=True)
class Pack:
    """The pack in memory: ``drawings[i]`` is the SVG text or the WebP bytes of ``records[i]``."""

    records: tuple[Record, ...]
    drawings: tuple[str | bytes, ...]
    sha256: str


def build_pack(folder: Path = PACK_FOLDER, cache: Path = PACKAGE_CACHE) -> Path:
    """Path of a freshly built pack, with ``manifest.json`` (hash, counts, sources) beside it.

    The same packages give the same bytes.

    Raises:
        UserError: a package cannot be fetched or is not the pinned one, or a folder cannot be
            written.
    """
    mistakes: list[str] = []
    for name, place in (("output_dir", folder), ("package_cache", cache)):
        with collecting(mistakes):
            check_writable(place, name)
    if mistakes:
        raise Mistakes(mistakes)
    names = read_members(fetch(NAMES, cache), {"en/data.json", "meta/groups.json"}.__contains__)
    concepts = read_concepts(names["en/data.json"], names["meta/groups.json"])
    records: list[Record] = []
    drawings: list[str | bytes] = []
    for source in DRAWINGS:
        archive = fetch(source.package, cache)
        pictures: Mapping[str, str | bytes] = (
            _svgs(archive, concepts) if source.form == "iconify" else _webps(archive)
        )
        for hexcode in sorted(pictures.keys() & concepts.keys()):
            records.append(_record(concepts[hexcode], source))
            drawings.append(pictures[hexcode])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PACK_NAME
    write_pack(path, records, drawings)
    manifest = {
        "pack": PACK_NAME,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
        "drawings": len(records),
        "concepts": len({r.concept for r in records}),
        "per_style": {s.style: sum(r.style == s.style for r in records) for s in DRAWINGS},
        "sources": [asdict(NAMES)] + [asdict(s.package) for s in DRAWINGS],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    logger.info("Wrote %s: %d drawings, %d bytes", path, len(records), path.stat().st_size)
    return path


def load_pack(path: Path) -> Pack:
    """The pack stored at ``path``.

    Raises:
        UserError: the file is missing or not a pack.
    """
    if not path.is_file():
        raise UserError(
            f"{path}: no data pack here; make it with stepvar train data configs/train/data.yaml"
        )
    content = path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as bundle:
            records = tuple(
                Record(**{**row, "keywords": tuple(row["keywords"])})
                for row in _read_lines(bundle, "records.jsonl.xz")
            )
            svgs = iter(_read_lines(bundle, "svg.jsonl.xz"))
            stored = set(bundle.namelist())
            drawings = tuple(
                bundle.read(name) if (name := _webp_name(row)) in stored else next(svgs)
                for row in range(len(records))
            )
    except (
        zipfile.BadZipFile,
        lzma.LZMAError,
        KeyError,
        TypeError,
        ValueError,
        StopIteration,
    ) as error:
        raise UserError(f"{path}: not a data pack of this version ({error!r}).") from error
    return Pack(records=records, drawings=drawings, sha256=hashlib.sha256(content).hexdigest())


def _record(concept: Concept, source: DrawingSource) -> Record:
    return Record(
        id=f"{source.style}/{concept.hexcode}",
        concept=concept.name,
        keywords=concept.keywords,
        style=source.style,
        group=concept.group,
    )


def _svgs(archive: Path, concepts: dict[str, Concept]) -> dict[str, str]:
    """SVG text by code points; a set with an empty code point table is matched by icon name."""
    members = read_members(archive, {"icons.json", "chars.json"}.__contains__)
    icons = json.loads(members["icons.json"])
    code_points = json.loads(members.get("chars.json", b"{}"))
    table = {normalise_hexcode(h): n for h, n in code_points.items()} or {
        h: re.sub(r"[^a-z0-9]+", "-", c.name.replace("'", "")).strip("-")
        for h, c in concepts.items()
    }
    out: dict[str, str] = {}
    for hexcode, name in table.items():
        icon = icons["icons"].get(name)
        if icon is None:
            continue
        box = (
            icon.get("left", 0),
            icon.get("top", 0),
            icon.get("width", icons.get("width", 16)),
            icon.get("height", icons.get("height", 16)),
        )
        out[hexcode] = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{" ".join(str(v) for v in box)}">{icon["body"]}</svg>'
        )
    return out


def _webps(archive: Path) -> dict[str, bytes]:
    members = read_members(archive, lambda n: n.startswith("assets/") and n.endswith(".webp"))
    return {normalise_hexcode(Path(name).stem): data for name, data in members.items()}


def _webp_name(row: int) -> str:
    return f"webp/{row:05d}.webp"


def write_pack(path: Path, records: list[Record], drawings: list[str | bytes]) -> None:
    """Writes the pack's zip; the same records and drawings give the same bytes."""
    members = {
        "records.jsonl.xz": _xz([asdict(r) for r in records]),
        "svg.jsonl.xz": _xz([d for d in drawings if isinstance(d, str)]),
    }
    members |= {_webp_name(i): d for i, d in enumerate(drawings) if isinstance(d, bytes)}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as bundle:
        for name, data in members.items():
            bundle.writestr(zipfile.ZipInfo(name, _EPOCH), data)


def _xz(rows: list[dict[str, object]] | list[str]) -> bytes:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 27}]
    return lzma.compress(text.encode(), format=lzma.FORMAT_XZ, filters=filters)


def _read_lines(bundle: zipfile.ZipFile, name: str) -> list[Any]:
    return [json.loads(line) for line in lzma.decompress(bundle.read(name)).decode().splitlines()]
