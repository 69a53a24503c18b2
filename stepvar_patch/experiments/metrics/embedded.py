"""Scores of the embedded model's images, computed offline from two packaged networks."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from infinity.text.base import TextEncoder
from infinity.training.data.captions import COLOURS, is_held_out, plain_caption
from infinity.training.data.compose import Composer
from infinity.training.data.pack import Record
from infinity.training.data.parse import CaptionParser
from stepvar_patch.experiments.metrics.background_colour import background_colours
from stepvar_patch.experiments.metrics.icon_features import IconFeatures
from stepvar_patch.experiments.metrics.kernel_distance import kernel_distance
from stepvar_patch.experiments.metrics.name_rank import name_ranks
from stepvar_patch.experiments.metrics.object_count import count_objects
from stepvar_patch.experiments.metrics.reference import Reference, fit, to_uint8

Scores = dict[str, float | int]

MIN_DISTANCE_SAMPLES = 16
"""A distance of fewer images says nothing."""

TOP = 10
"""Ranks that count as a hit in ``top10``."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What every image got; NaN where its prompt does not ask for it.

    Attributes:
        rank: of the right name among all names, 1 is best.
        word_rank: likewise among all names and all keywords but the object's own.
        style: 1 when the style asked for is recognised, else 0.
        background: likewise for the background colour.
        count: likewise for the number of copies.
        parsed: 1 where the prompt is in the caption grammar.
        on_white: whether the image is to show a single object on white.
        white: standardised features of those images, on the device.
    """

    rank: Float[np.ndarray, " n"]
    word_rank: Float[np.ndarray, " n"]
    style: Float[np.ndarray, " n"]
    background: Float[np.ndarray, " n"]
    count: Float[np.ndarray, " n"]
    parsed: Float[np.ndarray, " n"]
    on_white: Bool[np.ndarray, " n"]
    white: Float[Tensor, "m d"]


def judge(
    images: UInt8[Tensor, "n 256 256 3"],
    prompts: Sequence[str],
    reference: Reference,
    extract: IconFeatures,
) -> Judged:
    """Image by image, how well each shows what its prompt asks for.

    Args:
        images: sRGB, one per prompt.
        prompts: in the caption grammar; free wording is left out.
        reference: on the device of the features.
        extract: the feature network.

    Raises:
        ValueError: images and prompts differ in number.
    """
    if len(images) != len(prompts):
        raise ValueError(f"{len(images)} images for {len(prompts)} prompts")
    parser = _parser(reference.names)
    requests = [parser.parse(prompt) for prompt in prompts]
    rank, word_rank, style, background, count = (np.full(len(images), np.nan) for _ in range(5))
    on_white = np.zeros(len(images), dtype=bool)
    asked = [(i, r) for i, r in enumerate(requests) if r is not None]
    white = torch.empty(0, reference.feature_mean.shape[0], device=reference.feature_mean.device)
    if asked:
        found = background_colours(images[[i for i, _ in asked]], COLOURS)
        for (i, request), colour in zip(asked, found, strict=True):
            background[i] = colour == request.background
            if request.count > 1:
                count[i] = count_objects(images[i].cpu().numpy()) == request.count
    singles = [(i, r) for i, r in asked if r.count == 1 and r.relation is None]
    if singles:
        features = reference.standardise(extract(images[[i for i, _ in singles]]))
        predicted = features @ reference.probe_weight + reference.probe_bias
        width = reference.name_embeddings.shape[1]
        truth = torch.tensor([reference.names.index(r.concepts[0]) for _, r in singles])
        at = [i for i, _ in singles]
        rank[at] = name_ranks(predicted[:, :width], reference.name_embeddings, truth).tolist()
        word_rank[at] = _word_ranks(predicted[:, :width], truth.tolist(), reference)
        styles = predicted[:, width:].argmax(dim=1).tolist()
        for (i, request), recognised in zip(singles, styles, strict=True):
            if request.style is not None:
                style[i] = reference.styles[recognised] == request.style
        rows = [row for row, (_, r) in enumerate(singles) if r.background == "white"]
        white, on_white[[at[row] for row in rows]] = features[rows], True
    parsed = np.array([float(r is not None) for r in requests])
    return Judged(
        rank=rank,
        word_rank=word_rank,
        style=style,
        background=background,
        count=count,
        parsed=parsed,
        on_white=on_white,
        white=white,
    )


def score_images(
    images: UInt8[Tensor, "n 256 256 3"],
    prompts: Sequence[str],
    reference: Reference,
    device: torch.device | str,
) -> Scores:
    """Every score that the prompts allow.

    Prompts in the caption grammar are scored by what they ask for; free wording is left out.
    ``median_name_rank`` (lower is better, of ``names``), ``median_word_rank`` (of ``words``: all
    names and all keywords but the object's own), ``top10`` and ``style_accuracy`` look at prompts
    for one object; ``kernel_distance`` and ``frechet_64`` (lower is better) at those on
    white; ``background_accuracy`` at all; ``count_accuracy`` at prompts for two to four copies.
    A score without images to compute it from is absent, and each has its ``n``.

    Args:
        images: sRGB, one per prompt.
        prompts: what was asked for.
        reference: of the data set that the model was trained on.
        device: where features are computed.

    Raises:
        ValueError: images and prompts differ in number.
        UserError: the packages of the ``eval`` extra are not installed.
    """
    reference = reference.to(device)
    judged = judge(images, prompts, reference, IconFeatures(device))
    scores: Scores = {
        "images": len(images),
        "parsed": int(judged.parsed.sum()),
        "names": len(reference.names),
    }
    ranks = judged.rank[~np.isnan(judged.rank)]
    if ranks.size:
        scores |= {
            "single_n": ranks.size,
            "median_name_rank": float(np.median(ranks)),
            "median_word_rank": float(np.nanmedian(judged.word_rank)),
            "words": len(reference.names) + len(reference.keyword_embeddings),
            "top10": float((ranks <= TOP).mean()),
        }
    for name in ("style", "background", "count"):
        values = getattr(judged, name)
        known = values[~np.isnan(values)]
        if known.size:
            scores |= {f"{name}_accuracy": float(known.mean()), f"{name}_n": known.size}
    if len(judged.white) >= MIN_DISTANCE_SAMPLES:
        scores |= {
            "kernel_distance": kernel_distance(judged.white, reference.real_features),
            "frechet_64": reference.frechet(judged.white),
            "distance_n": len(judged.white),
        }
    return scores


def held_out_captions(records: Sequence[Record]) -> list[str]:
    """One caption, on white, of every drawing that training never shows: the prompts to score.

    The distances depend on the number of images, so only scores of equally many compare.
    """
    return [plain_caption(r) for r in records if is_held_out(r.concept, r.style)]


def evaluate(
    generated: UInt8[Tensor, "n 256 256 3"],
    prompts: Sequence[str],
    rendered: UInt8[Tensor, "r 256 256 4"],
    records: Sequence[Record],
    device: torch.device | str,
    encoder: TextEncoder,
    reference: Reference | None = None,
) -> dict[str, Scores]:
    """Scores of generated images beside what real and mismatched drawings get.

    ``generated`` are the images given; ``real_held_out`` the drawings that training never shows,
    with their own captions (the best to hope for); ``shuffled`` the same with the captions of
    others (chance).

    Args:
        generated: sRGB, one per prompt.
        prompts: what was asked for.
        rendered: premultiplied RGBA of every record, on any device.
        records: what is drawn in each row.
        device: where features are computed.
        encoder: gives the names' embeddings; not used with a reference.
        reference: from :func:`stepvar_patch.experiments.metrics.reference.fit`; fitted here when
            absent.

    Raises:
        ValueError: images and prompts differ in number.
        UserError: the packages of the ``eval`` extra are not installed.
    """
    reference = reference or fit(rendered, records, encoder, device)
    scores = {"generated": score_images(generated, prompts, reference, device)}
    hidden = [r for r in records if is_held_out(r.concept, r.style)]
    if hidden:
        real = to_uint8(Composer(rendered, records, seed=0).single([r.id for r in hidden]))
        captions = held_out_captions(records)
        shift = len(captions) // 2
        others = captions[shift:] + captions[:shift]
        scores["real_held_out"] = score_images(real, captions, reference, device)
        scores["shuffled"] = score_images(real, others, reference, device)
    return scores


@lru_cache(maxsize=2)
def _parser(names: tuple[str, ...]) -> CaptionParser:
    return CaptionParser(names)


def _word_ranks(
    predicted: Float[Tensor, "n e"], truth: Sequence[int], reference: Reference
) -> list[int]:
    """Ranks among all names and keywords; an object's own keywords do not compete."""
    candidates = torch.cat([reference.name_embeddings, reference.keyword_embeddings])
    ignored = torch.zeros(len(truth), len(candidates), dtype=torch.bool)
    for row, name in enumerate(truth):
        ignored[row, [len(reference.names) + own for own in reference.keywords_of[name]]] = True
    return name_ranks(predicted, candidates, torch.tensor(truth), ignored).tolist()
