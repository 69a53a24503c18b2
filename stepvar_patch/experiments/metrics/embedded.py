"""Scores of the embedded model's images, computed offline from two packaged networks."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor

from infinity.text.base import TextEncoder
from infinity.training.data.captions import COLOURS, is_held_out, plain_caption
from infinity.training.data.compose import Composer
from infinity.training.data.pack import Record
from infinity.training.data.parse import CaptionParser, Request
from stepvar_patch.experiments.metrics.background_colour import background_colours
from stepvar_patch.experiments.metrics.frechet import frechet_distance, gaussian
from stepvar_patch.experiments.metrics.icon_features import IconFeatures
from stepvar_patch.experiments.metrics.kernel_distance import kernel_distance
from stepvar_patch.experiments.metrics.name_rank import name_ranks
from stepvar_patch.experiments.metrics.object_count import count_objects
from stepvar_patch.experiments.metrics.reference import Reference, fit, to_uint8

Scores = dict[str, float | int]

_MIN_DISTANCE_SAMPLES = 16


@dataclass(frozen=True, kw_only=True)
class _Asked:
    index: int
    request: Request


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
    if len(images) != len(prompts):
        raise ValueError(f"{len(images)} images for {len(prompts)} prompts")
    parser, reference = CaptionParser(reference.names), reference.to(device)
    parsed = ((i, parser.parse(prompt)) for i, prompt in enumerate(prompts))
    asked = [_Asked(index=i, request=request) for i, request in parsed if request is not None]
    scores: Scores = {"images": len(images), "parsed": len(asked), "names": len(reference.names)}
    singles = [a for a in asked if a.request.count == 1 and a.request.relation is None]
    if singles:
        chosen = images[[a.index for a in singles]]
        scores |= _single_scores(chosen, [a.request for a in singles], reference, device)
    if asked:
        found = background_colours(images[[a.index for a in asked]], COLOURS)
        right = [f == a.request.background for f, a in zip(found, asked, strict=True)]
        scores |= {"background_accuracy": sum(right) / len(right), "background_n": len(right)}
    counted = [a for a in asked if a.request.count > 1]
    if counted:
        counts = [count_objects(images[a.index].cpu().numpy()) for a in counted]
        right = [c == a.request.count for c, a in zip(counts, counted, strict=True)]
        scores |= {"count_accuracy": sum(right) / len(right), "count_n": len(right)}
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


def _single_scores(
    images: UInt8[Tensor, "n 256 256 3"],
    requests: Sequence[Request],
    reference: Reference,
    device: torch.device | str,
) -> Scores:
    features = reference.standardise(IconFeatures(device)(images))
    predicted = features @ reference.probe_weight + reference.probe_bias
    width = reference.name_embeddings.shape[1]
    truth = torch.tensor([reference.names.index(r.concepts[0]) for r in requests])
    ranks = name_ranks(predicted[:, :width], reference.name_embeddings, truth).float()
    candidates = torch.cat([reference.name_embeddings, reference.keyword_embeddings])
    ignored = torch.zeros(len(requests), len(candidates), dtype=torch.bool)
    for row, name in enumerate(truth.tolist()):
        ignored[row, [len(reference.names) + own for own in reference.keywords_of[name]]] = True
    among_words = name_ranks(predicted[:, :width], candidates, truth, ignored).float()
    scores: Scores = {
        "single_n": len(requests),
        "median_name_rank": float(ranks.quantile(0.5)),
        "median_word_rank": float(among_words.quantile(0.5)),
        "words": len(candidates),
        "top10": float((ranks <= 10).float().mean()),
    }
    styles = predicted[:, width:].argmax(dim=1).tolist()
    pairs = [(reference.styles[s], r.style) for s, r in zip(styles, requests, strict=True)]
    right = [found == asked for found, asked in pairs if asked is not None]
    if right:
        scores |= {"style_accuracy": sum(right) / len(right), "style_n": len(right)}
    white = features[[i for i, r in enumerate(requests) if r.background == "white"]]
    if len(white) >= _MIN_DISTANCE_SAMPLES:
        mean, covariance = gaussian((white - reference.pca_mean) @ reference.pca_directions)
        real = (reference.real_mean, reference.real_covariance)
        scores |= {
            "kernel_distance": kernel_distance(white, reference.real_features),
            "frechet_64": frechet_distance(mean, covariance, *real),
            "distance_n": len(white),
        }
    return scores
