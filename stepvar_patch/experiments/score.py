"""Offline scores of a finished run of the embedded model, beside those of real drawings."""

import logging
from pathlib import Path

import numpy as np
import torch

from infinity.errors import UserError
from infinity.io.images import read_png
from infinity.io.manifest import read_rows
from infinity.loading import resolve_device
from infinity.text.minilm import MiniLMEncoder
from infinity.training.data.pack import load_pack
from infinity.training.data.render import SIDE_PX, render_pack
from stepvar_patch.experiments.metrics.embedded import Scores, evaluate
from stepvar_patch.experiments.scorers.embedded import load_reference

logger = logging.getLogger(__name__)


def score_run(run: Path, pack: Path, text_encoder: Path, device: str) -> dict[str, Scores]:
    """Scores of the images of ``run``, of the held-out drawings, and of shuffled captions.

    Args:
        run: folder of a finished ``stepvar generate``, with captions of the training grammar.
        pack: the drawings; rendering and reference are cached beside it.
        text_encoder: folder of the embedded model's text encoder.
        device: where features are computed.

    Raises:
        UserError: no finished image, images of another size, no pack, no such device, or the
            ``eval`` extra is not installed.
    """
    resolve_device(device)
    rows = read_rows(run)
    if not rows:
        raise UserError(f"{run}: no finished image of stepvar generate is here")
    pictures = [read_png(run / row.file)[0].convert("RGB") for row in rows]
    if other := next((p.size for p in pictures if p.size != (SIDE_PX, SIDE_PX)), None):
        raise UserError(f"{run}: holds a picture of {other[1]} × {other[0]}; scored are 256 × 256")
    images = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
    drawings = load_pack(pack)
    rendered = torch.from_numpy(np.array(render_pack(drawings, pack.parent)))
    encoder = MiniLMEncoder.from_directory(text_encoder)
    logger.info("reading the reference, or fitting it on every training drawing: minutes on a CPU")
    return evaluate(
        images,
        [row.prompt for row in rows],
        rendered,
        drawings.records,
        device,
        encoder,
        load_reference(pack, text_encoder, device),
    )
