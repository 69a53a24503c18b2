"""Distances between generated and real pictures in the features of Inception and of CLIP."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from infinity.errors import UserError
from infinity.io.files import make_folder, write_atomic
from stepvar_patch.experiments.estimate import DISTANCE_RESAMPLES, Bootstrap, Estimate, around
from stepvar_patch.experiments.metrics.frechet import (
    few_frechet_distance,
    frechet_distance,
    gaussian,
)
from stepvar_patch.experiments.metrics.inception import SIDE_PX
from stepvar_patch.experiments.metrics.kernel_distance import resampled_kernel_distances
from stepvar_patch.experiments.pictures import read_picture

Protocol = Literal["clean", "tensorflow"]
KERNEL_SAMPLES = 5000
"""The kernel distance looks at this many pictures of each side, the first."""

_FEW = "at least two pictures"
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def resize_for_inception(
    images: UInt8[Tensor, "b h w 3"], protocol: Protocol
) -> Float[Tensor, "b 3 299 299"]:
    """Pictures as the FID network takes them, in [-1, 1].

    Args:
        images: sRGB.
        protocol: ``clean`` is bicubic and antialiased, as Parmar et al. 2022 ask; ``tensorflow`` is
            the original program's bilinear sampling without antialiasing.
    """
    x = images.permute(0, 3, 1, 2).float()
    if protocol == "clean":
        x = F.interpolate(x, size=SIDE_PX, mode="bicubic", antialias=True).clamp(0, 255)
    else:
        for axis in (2, 3):
            length = x.shape[axis]
            at = torch.arange(SIDE_PX, device=x.device, dtype=x.dtype) * (length / SIDE_PX)
            low = at.floor().long()
            high = (low + 1).clamp(max=length - 1)
            share = (at - low).view([-1 if a == axis else 1 for a in range(4)])
            x = torch.lerp(x.index_select(axis, low), x.index_select(axis, high), share)
    return (x - 128) / 128


@dataclass(frozen=True, kw_only=True)
class RealStatistics:
    """What is kept of the real pictures' features."""

    mean: Float[Tensor, " d"]
    covariance: Float[Tensor, "d d"]
    sample: Float[Tensor, "m d"]
    count: int


def real_statistics(
    folder: Path,
    features: Callable[[UInt8[Tensor, "b h w 3"]], Float[Tensor, "b d"]],
    name: str,
    cache: Path,
    device: str,
) -> RealStatistics:
    """Statistics of a folder of real pictures, computed once per folder and feature.

    Args:
        folder: sub-folders count.
        features: of a batch of pictures.
        name: of the features.
        cache: folder that keeps the statistics.
        device: where features are computed.

    Raises:
        UserError: too few or unreadable pictures, or a full disk.
    """
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())
    if len(files) < 2:
        raise UserError(f"files.real_images: {folder} holds {len(files)} pictures; give at least 2")
    listed = [(str(p), p.stat().st_size, p.stat().st_mtime) for p in files]
    key = hashlib.sha256(json.dumps([name, listed]).encode()).hexdigest()[:16]
    path = cache / f"real-{name}-{key}.safetensors"
    stored = _kept(path)
    if stored is None:
        parts = [features(image.to(device)).float().cpu() for image in _batches(files)]
        found = torch.cat(parts)
        mean, covariance = gaussian(found.double())
        stored = {
            "mean": mean,
            "covariance": covariance,
            "sample": found[:KERNEL_SAMPLES].clone(),
            "count": torch.tensor([len(found)]),
        }
        make_folder(cache)
        content = save(stored)
        write_atomic(path, lambda file: file.write(content))
    return RealStatistics(
        mean=stored["mean"].to(device),
        covariance=stored["covariance"].to(device),
        sample=stored["sample"].to(device),
        count=int(stored["count"]),
    )


def _kept(path: Path) -> dict[str, Tensor] | None:
    """What an earlier call left; None where there is nothing, or nothing whole."""
    try:
        stored = load_file(path)
    except (OSError, SafetensorError):
        return None
    return stored if {"mean", "covariance", "sample", "count"} <= stored.keys() else None


def fid(features: Float[Tensor, "n d"], real: RealStatistics) -> Estimate:
    """Fréchet distance to the real pictures; few pictures read high, so there is no interval."""
    x = features.double()
    if len(x) < 2:
        return Estimate.absent(_FEW)
    if len(x) >= x.shape[1]:
        mean, covariance = gaussian(x)
        value = frechet_distance(mean, covariance, real.mean, real.covariance)
    else:
        value = few_frechet_distance(x, real.mean, real.covariance)
    return Estimate(value=value, n=len(features))


def kid(features: Float[Tensor, "n d"], real: RealStatistics, bootstrap: Bootstrap) -> Estimate:
    """Kernel distance to the real pictures with its interval."""
    if len(features) < 2:
        return Estimate.absent(_FEW)
    weights = bootstrap.weights[:DISTANCE_RESAMPLES, :KERNEL_SAMPLES]
    value, resampled = resampled_kernel_distances(features[:KERNEL_SAMPLES], real.sample, weights)
    return around(value, resampled, min(len(features), KERNEL_SAMPLES))


def inception_score(logits: Float[Tensor, "n c"], bootstrap: Bootstrap) -> Estimate:
    """``exp E KL(p(y|x) ‖ p(y))`` over all pictures at once; higher is better.

    Source: Salimans et al. 2016, sec. 4; deviation: one split, and a bootstrap interval.
    """
    p = logits.double().softmax(1)
    own = (p * p.clamp_min(1e-300).log()).sum(1)

    def score(weights: Float[Tensor, "r n"]) -> Float[Tensor, " r"]:
        w = weights / weights.sum(1, keepdim=True)
        marginal = w @ p
        return (w @ own - (marginal * marginal.clamp_min(1e-300).log()).sum(1)).exp()

    value = float(score(p.new_ones(1, len(p))))
    resampled = score(torch.from_numpy(bootstrap.weights[:DISTANCE_RESAMPLES]).to(p))
    return around(value, resampled.cpu().numpy(), len(p))


def _batches(files: list[Path], size: int = 32) -> Iterator[UInt8[Tensor, "b h w 3"]]:
    """Pictures of equal size together, in order."""
    group: list[Tensor] = []
    for path in files:
        image = read_picture(path)
        if group and (len(group) == size or image.shape != group[0].shape):
            yield torch.stack(group)
            group = []
        group.append(image)
    yield torch.stack(group)
