"""Loading a model for a run: whole, or with little memory."""

import gc
import logging
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from infinity.io.manifest import RunFolder
from infinity.io.ranks import Ranks
from infinity.memory import Memory, MemoryNeed, memory_need
from infinity.policy import DensePolicy
from infinity.quantize import quantize
from infinity.tokenizer.banded import BandedDecoder
from stepvar_patch.experiments.check import CheckedRun
from stepvar_patch.experiments.plan import jobs
from stepvar_patch.experiments.pruning import policy_request, resolve_pruning
from stepvar_patch.experiments.schema import GenerateConfig

TEXT_CACHE = ".text"
"""Folder of text features inside a run folder, unless the config names another."""

MODES: tuple[Memory, ...] = ("auto", "low")
_MOST_ADVISED = 64
"""Largest batch that is looked at."""

logger = logging.getLogger(__name__)


def need_of(config: GenerateConfig, checked: CheckedRun, images: int | None = None) -> MemoryNeed:
    """Device memory that a run will need at once.

    Args:
        config: of the run.
        checked: what is known of it.
        images: drawn together; default: the config's batch.
    """
    import torch

    on_cpu = checked.device == "cpu"
    batch = images or (1 if on_cpu else config.batch_size)
    kind = checked.device_type
    request = policy_request(checked.model, config, images=batch, device_type=kind)
    policy = resolve_pruning(config, checked.model) or DensePolicy()
    return memory_need(
        checked.model,
        request.schedule,
        images=batch,
        guided=request.guidance_rows == 2,
        dtype=getattr(torch, checked.dtype),
        cached_tokens=policy.start(request).cached_tokens,
        quantized=config.quantize is not None,
        recorded=config.quantize is None,
    )


def advise(config: GenerateConfig, checked: CheckedRun, total_bytes: int | None) -> dict[str, Any]:
    """What a run needs by mode, and which mode and batch a card has room for.

    Args:
        config: of the run.
        checked: what is known of it.
        total_bytes: of the card; None if there is none.

    Returns:
        The parts and peaks in bytes, and ``advice`` in words.
    """
    need = need_of(config, checked)
    gib = {mode: need.peak(mode) / 2**30 for mode in MODES}
    advice = f"auto needs {gib['auto']:.1f} GiB, low {gib['low']:.1f} GiB"
    batch = 1 if checked.device == "cpu" else config.batch_size
    advice += f" for batch_size = {batch}"
    if total_bytes is not None:
        fitting = [mode for mode in MODES if need.fits(mode, total_bytes)]
        room = {mode: _largest_batch(config, checked, mode, total_bytes) for mode in MODES}
        card = f"the card's {total_bytes / 2**30:.1f} GiB"
        if fitting:
            mode = fitting[0]
            advice += f"; memory={mode} fits {card}, up to batch_size = {room[mode]}"
        elif room["low"]:
            advice += f"; {card} hold only batch_size = {room['low']} with memory=low"
        else:
            advice += f"; {card} are too little for one image"
    return {**need.to_json(), "advice": advice}


def _largest_batch(
    config: GenerateConfig, checked: CheckedRun, memory: Memory, total_bytes: int
) -> int:
    fitting = 0
    while fitting < _MOST_ADVISED:
        if not need_of(config, checked, images=fitting + 1).fits(memory, total_bytes):
            break
        fitting += 1
    return fitting


def choose_memory(config: GenerateConfig, checked: CheckedRun) -> Memory:
    """``low`` when asked for, or when the card is too small for everything at once.

    The card's whole memory decides, not what is free at the moment: a resumed run must choose
    alike.
    """
    import torch

    on_gpu = checked.device != "cpu" and torch.cuda.is_available()
    if config.memory == "low" or not on_gpu:
        return config.memory
    total = torch.cuda.get_device_properties(torch.device(checked.device)).total_memory
    need = need_of(config, checked)
    if need.fits("auto", total):
        return "auto"
    gib = need.peak("auto") / 2**30
    logger.warning("memory=low is used: %.1f GiB do not fit the card's %.1f", gib, total / 2**30)
    return "low"


def load_for_run(
    config: GenerateConfig,
    checked: CheckedRun,
    folder: RunFolder,
    device: str,
    ranks: Ranks,
    memory: Memory,
    load_pipeline: Callable[..., Any],
) -> Any:
    """The pipeline of a run.

    With ``low`` the prompts of all unfinished images are encoded first, the encoder is freed, and
    the decoder works in bands.

    Raises:
        UserError: the model cannot be loaded, or the text features cannot be written.
    """
    words: dict[str, Any] = {
        "tokenizer": config.tokenizer,
        "text_encoder": config.text_encoder,
        "device": device,
        "dtype": checked.dtype,
    }
    if memory == "low":
        words["encoder"] = _encode_first(config, checked, folder, device, ranks)
    pipeline = load_pipeline(config.model, **words)
    if memory == "low":
        pipeline.tokenizer.decoder = BandedDecoder(pipeline.tokenizer.decoder)
        pipeline.engine = "plain"  # recordings keep their memory between calls
    if config.quantize is not None:
        quantize(pipeline.transformer, config.quantize)
        gc.collect()
    return pipeline


def _encode_first(
    config: GenerateConfig, checked: CheckedRun, folder: RunFolder, device: str, ranks: Ranks
) -> Any:
    import torch

    from infinity.loading import own_text_encoder
    from infinity.text import load_text_encoder
    from infinity.text.cache import CachedTextEncoder, TextCache, encoder_identity, fill

    model, dtype = checked.model, getattr(torch, checked.dtype)
    if config.text_encoder:
        source = Path(config.text_encoder)
    else:
        source = own_text_encoder(Path(config.model), model)
    place = Path(config.text_cache) if config.text_cache else folder.path / TEXT_CACHE
    kind, longest = torch.device(device).type, model.text_encoder.max_tokens
    identity = encoder_identity(source, dtype, kind, longest)
    cache = TextCache(place, identity)
    for mine in (True, False):
        texts = iter(cache.missing(_texts(config, folder, ranks if mine else None)))
        if (first := next(texts, None)) is not None:
            encoder = load_text_encoder(model.text_encoder, source, torch.device(device), dtype)
            fill(cache, encoder, chain([first], texts))
            del encoder
            gc.collect()
            if device != "cpu":
                torch.cuda.empty_cache()
    return CachedTextEncoder(
        cache, width=model.text_encoder.width, max_tokens=model.text_encoder.max_tokens
    )


def _texts(config: GenerateConfig, folder: RunFolder, ranks: Ranks | None) -> Iterator[str]:
    """What unfinished images need encoded: all of it, or one process's share."""
    for number, job in enumerate(jobs(config)):
        if ranks is not None and number % ranks.world != ranks.rank:
            continue
        # A finished image may be drawn again, as a neighbour in a batch that is drawn whole.
        if config.batch_size > 1 or job.file not in folder.finished:
            yield job.row.prompt
            if job.negative_prompt:
                yield job.negative_prompt
