"""What the embedded model's scores compare with, fitted once on rendered training drawings."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from random import Random

import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from infinity.errors import UserError
from infinity.io.files import make_folder, write_atomic
from infinity.text.base import TextEncoder
from infinity.training.data.captions import COLOURS, is_held_out
from infinity.training.data.compose import Composer
from infinity.training.data.pack import Record
from infinity.training.data.sources import STYLES
from infinity.training.latents import BatchTextEncoder
from stepvar_patch.experiments.metrics.frechet import fit_pca, frechet_distance, gaussian
from stepvar_patch.experiments.metrics.icon_features import IconFeatures
from stepvar_patch.experiments.metrics.ridge import fit_ridge

PENALTY = 300.0
PRINCIPAL_DIRECTIONS = 64
REAL_SAMPLES = 2000
_CHUNK = 64
_NAME_CHUNK = 256
_WORDS = ("names", "styles", "keywords", "keywords_of")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Probe and statistics of real drawings.

    Attributes:
        names: every concept name; row ``i`` of ``name_embeddings`` belongs to ``names[i]``.
        styles: the style words, in the order of the probe's last columns.
        keywords: every keyword that is no concept's name, further candidates of a harder ranking.
        keywords_of: positions in ``keywords`` of each concept's own keywords, as ``names`` go.
        name_embeddings: mean token state of each name.
        keyword_embeddings: of each keyword.
        feature_mean: of training features, for standardising.
        feature_std: likewise; at least 1e-3.
        probe_weight: standardised features to name embedding and style one-hot.
        probe_bias: likewise.
        pca_mean: of standardised features of training drawings on white.
        pca_directions: their leading principal directions.
        real_mean: of the projected features.
        real_covariance: likewise.
        real_features: a sample of standardised features of training drawings on white.
    """

    names: tuple[str, ...]
    styles: tuple[str, ...]
    keywords: tuple[str, ...]
    keywords_of: tuple[tuple[int, ...], ...]
    name_embeddings: Float[Tensor, "c e"]
    keyword_embeddings: Float[Tensor, "w e"]
    feature_mean: Float[Tensor, " d"]
    feature_std: Float[Tensor, " d"]
    probe_weight: Float[Tensor, "d k"]
    probe_bias: Float[Tensor, " k"]
    pca_mean: Float[Tensor, " d"]
    pca_directions: Float[Tensor, "d p"]
    real_mean: Float[Tensor, " p"]
    real_covariance: Float[Tensor, "p p"]
    real_features: Float[Tensor, "m d"]

    def standardise(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        return (features - self.feature_mean) / self.feature_std

    def frechet(self, features: Float[Tensor, "n d"]) -> float:
        """Fréchet distance of standardised features to the real drawings, in the projection."""
        mean, covariance = gaussian(self.project(features))
        return frechet_distance(mean, covariance, self.real_mean, self.real_covariance)

    def project(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n p"]:
        """Standardised features in the real drawings' leading principal directions."""
        return (features - self.pca_mean) @ self.pca_directions

    def to(self, device: torch.device | str) -> "Reference":
        moved = {f: getattr(self, f).to(device) for f in _tensor_fields()}
        words = {f: getattr(self, f) for f in _WORDS}
        return Reference(**words, **moved)

    def save(self, path: Path) -> None:
        """Writes one safetensors file; everything that is no tensor is its metadata.

        Raises:
            UserError: the disk is full or the place is not writable.
        """
        make_folder(path.parent)
        tensors = {f: getattr(self, f).cpu().contiguous() for f in _tensor_fields()}
        words = {f: json.dumps(getattr(self, f)) for f in _WORDS}
        content = save(tensors, metadata=words)
        write_atomic(path, lambda file: file.write(content))

    @classmethod
    def load(cls, path: Path) -> "Reference":
        """The reference stored by :meth:`save`.

        Raises:
            UserError: the file is missing or holds something else.
        """
        try:
            with safe_open(path, framework="pt") as file:
                words = file.metadata() or {}
                return cls(
                    names=tuple(json.loads(words["names"])),
                    styles=tuple(json.loads(words["styles"])),
                    keywords=tuple(json.loads(words["keywords"])),
                    keywords_of=tuple(tuple(own) for own in json.loads(words["keywords_of"])),
                    **{f: file.get_tensor(f) for f in _tensor_fields()},
                )
        except (OSError, SafetensorError, KeyError) as error:
            raise UserError(f"{path}: not a score reference of this version ({error}).") from error


def fit(
    rendered: UInt8[Tensor, "r 256 256 4"],
    records: Sequence[Record],
    encoder: TextEncoder,
    device: torch.device | str,
    seed: int = 0,
) -> Reference:
    """The reference of a data set: every training drawing on white and on one named colour.

    Held-out drawings take no part in it, but their names stay among the candidates.

    Args:
        rendered: premultiplied RGBA of every record, on any device.
        records: what is drawn in each row.
        encoder: gives the names' embeddings.
        device: where features are computed and the probe is solved.
        seed: chooses the colours and the sample that is kept.

    Raises:
        UserError: the packages of the ``eval`` extra are not installed.
    """
    rng = Random(seed)
    rows = [r for r in records if not is_held_out(r.concept, r.style)]
    rng.shuffle(rows)
    extract, composer = IconFeatures(device), Composer(rendered, records, seed)
    white = _features(extract, composer, rows, lambda: "white")
    named = [name for name in COLOURS if name != "white"]
    coloured = _features(extract, composer, rows, lambda: rng.choice(named))

    names = tuple(sorted({r.concept for r in records}))
    embeddings = name_embeddings(names, encoder).to(device)
    own: dict[str, set[str]] = {name: set() for name in names}
    for record in records:
        own[record.concept].update(word for word in record.keywords if word not in own)
    keywords = tuple(sorted(set().union(*own.values())))
    position = {word: i for i, word in enumerate(keywords)}
    both = torch.cat([white, coloured])
    mean, std = both.mean(0), both.std(0).clamp_min(1e-3)
    target = torch.cat([embeddings[_indices(names, rows)], _one_hot(rows).to(device)], dim=1)
    weight, bias = fit_ridge((both - mean) / std, target.repeat(2, 1), PENALTY)
    real = (white - mean) / std
    pca_mean, directions = fit_pca(real, min(PRINCIPAL_DIRECTIONS, len(real) - 1))
    real_mean, real_covariance = gaussian((real - pca_mean) @ directions)
    return Reference(
        names=names,
        styles=STYLES,
        keywords=keywords,
        keywords_of=tuple(tuple(position[w] for w in sorted(own[name])) for name in names),
        name_embeddings=embeddings,
        keyword_embeddings=name_embeddings(keywords, encoder).to(device),
        feature_mean=mean,
        feature_std=std,
        probe_weight=weight,
        probe_bias=bias,
        pca_mean=pca_mean,
        pca_directions=directions,
        real_mean=real_mean,
        real_covariance=real_covariance,
        real_features=real[:REAL_SAMPLES],
    )


def name_embeddings(names: Sequence[str], encoder: TextEncoder) -> Float[Tensor, "c e"]:
    """Mean token state of each name."""
    if not names:
        return torch.zeros(0, encoder.width)
    encode = encoder.encode_batch if isinstance(encoder, BatchTextEncoder) else encoder.encode
    parts = (encode(names[i : i + _NAME_CHUNK]).split() for i in range(0, len(names), _NAME_CHUNK))
    return torch.stack([rows.mean(0) for part in parts for rows in part])


def to_uint8(images: Float[Tensor, "n 3 h w"]) -> UInt8[Tensor, "n h w 3"]:
    """Images in [-1, 1] as sRGB bytes, channels last."""
    return ((images + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1)


def _features(
    extract: IconFeatures,
    composer: Composer,
    rows: Sequence[Record],
    background: Callable[[], str],
) -> Float[Tensor, "n d"]:
    chunks = (rows[i : i + _CHUNK] for i in range(0, len(rows), _CHUNK))
    return torch.cat(
        [extract(to_uint8(composer.single([r.id for r in c], background()))) for c in chunks]
    )


def _indices(names: Sequence[str], rows: Sequence[Record]) -> list[int]:
    place = {name: i for i, name in enumerate(names)}
    return [place[row.concept] for row in rows]


def _one_hot(rows: Sequence[Record]) -> Float[Tensor, "n s"]:
    return torch.eye(len(STYLES))[[STYLES.index(row.style) for row in rows]]


def _tensor_fields() -> list[str]:
    return [f.name for f in fields(Reference) if f.name not in _WORDS]
