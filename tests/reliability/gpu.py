"""What a GPU must show: memory as predicted, 2B at 1024² within 12 GB, a long run that stays flat.

    python tests/reliability/gpu.py OUTPUT.json

Weights are random, shapes are those of Infinity-2B and flan-T5-XL's encoder. Every step prints a
line; the file holds them all with the environment.
"""

import gc
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

from infinity.checkpoint import load_into
from infinity.checkpoint.lazy import LazyState, shapes_of
from infinity.config import PRESETS
from infinity.loading import resolve_dtype
from infinity.memory import memory_need
from infinity.pipeline import InfinityPipeline
from infinity.text.cache import CachedTextEncoder, TextCache, fill
from infinity.tokenizer.autoencoder import BSQTokenizer
from infinity.tokenizer.banded import BandedDecoder
from infinity.transformer.model import InfinityTransformer
from stepvar_patch.experiments.bench.random_model import random_pipeline, random_t5

GIB = 2**30
CARD_GIB = 12
PRESET = "infinity-2b"
SOAK_IMAGES, SOAK_BATCH = 504, 12
TOKENS = 24
DEVICE = torch.device("cuda")
CONFIG = PRESETS[PRESET]


def low(folder: Path) -> dict[str, Any]:
    """One 1024² picture with all of ``memory=low`` on a card of 12 GiB."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(CARD_GIB * GIB / total)
    restart()
    cache = TextCache(folder, "0" * 64)
    encoder = random_t5(CONFIG.text_encoder, TOKENS, DEVICE, torch.bfloat16)
    fill(cache, encoder, ["a red apple"])
    encoding = torch.cuda.max_memory_allocated()
    del encoder
    collect()
    pipeline = streamed(CachedTextEncoder(cache, width=CONFIG.text_encoder.width, max_tokens=512))
    whole = pipeline.tokenizer.decoder
    pipeline.tokenizer.decoder = BandedDecoder(whole)
    pipeline.engine = "plain"
    restart()
    image = pipeline(["a red apple"], seed=1, output_type="pt")
    row = compare("low", pipeline, 1) | {"text_encoding_gib": encoding / GIB}
    pipeline.tokenizer.decoder = whole
    torch.cuda.set_per_process_memory_fraction(1.0)
    other = pipeline.decode_tensor(image.latents)
    difference = ((other + 1) / 2 - image.images[0][None]).abs() * 255
    row |= {"bands_largest_difference_of_255": round(difference.max().item(), 3)}
    return row


def streamed(encoder: Any) -> InfinityPipeline:
    """The pipeline as ``from_pretrained`` builds it: on the meta device, then tensor by tensor."""
    with torch.device("meta"):
        modules = InfinityTransformer(CONFIG.transformer), BSQTokenizer(CONFIG.tokenizer)
    modules[0].set_compute_dtype(resolve_dtype(None, DEVICE))
    for module in modules:
        shapes = shapes_of(module.state_dict())
        random = LazyState(shapes, lambda key, s=shapes: 0.02 * torch.randn(s[key], device=DEVICE))
        load_into(module, random, context="random", device=DEVICE)
        module.eval().requires_grad_(False)
    return InfinityPipeline(
        config=CONFIG,
        transformer=modules[0],
        tokenizer=modules[1],
        text_encoder=encoder,
        digest="random",
        device=DEVICE,
        dtype=torch.bfloat16,
    )


def compare(memory: Any, pipeline: InfinityPipeline, images: int) -> dict[str, Any]:
    """Predicted against measured."""
    need = memory_need(
        CONFIG,
        pipeline.schedule(),
        images=images,
        guided=True,
        dtype=torch.bfloat16,
        recorded=True,
    )
    predicted, measured = need.peak(memory), torch.cuda.max_memory_allocated()
    return {
        "step": f"{memory}, {images} images of 1024²",
        "predicted_gib": round(predicted / GIB, 3),
        "measured_gib": round(measured / GIB, 3),
        "measured_over_predicted": round(measured / predicted, 4),
        "reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 3),
    }


def soak(pipeline: InfinityPipeline) -> dict[str, Any]:
    """Many small pictures in one process; memory at intervals."""
    pipeline.max_batch_size = SOAK_BATCH
    samples, begun = [], time.monotonic()
    for first in range(0, SOAK_IMAGES, SOAK_BATCH):
        prompts = [f"{first + i}" for i in range(SOAK_BATCH)]
        pipeline(prompts, seed=first, resolution="0.06M")
        if first // SOAK_BATCH % 6 == 0:
            samples.append(
                {
                    "images": first + SOAK_BATCH,
                    "allocated_mib": round(torch.cuda.memory_allocated() / 2**20, 1),
                    "reserved_mib": round(torch.cuda.memory_reserved() / 2**20, 1),
                    "host_mib": round(host_mib(), 1),
                }
            )
    return {
        "step": "soak, 2B shapes at 256²",
        "images": SOAK_IMAGES,
        "seconds": round(time.monotonic() - begun, 1),
        "samples": samples,
    }


def repeatability(pipeline: InfinityPipeline) -> dict[str, Any]:
    """Whether the same batch gives the same pixels again, and how far another batch is from it."""
    prompts = [f"{i}" for i in range(4)]

    def draw(words: list[str], seeds: list[int], batch: int) -> torch.Tensor:
        pipeline.max_batch_size = batch
        out = pipeline(words, seed=seeds, resolution="0.06M", output_type="np")
        return torch.stack([torch.from_numpy(image).int() for image in out.images])

    seeds = [1, 2, 3, 4]
    first, again = draw(prompts, seeds, 4), draw(prompts, seeds, 4)
    alone = draw(prompts, seeds, 1)
    return {
        "step": "repeatability in bf16",
        "same_batch_identical": torch.equal(first, again),
        "batch_of_one_differing_pixels": round((first != alone).float().mean().item(), 5),
    }


def host_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def restart() -> None:
    collect()
    torch.cuda.reset_peak_memory_stats()


def collect() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def main(output: Path) -> None:
    record: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "preset": PRESET,
        "card_gib": CARD_GIB,
        "steps": [],
    }

    def note(row: dict[str, Any]) -> None:
        record["steps"].append(row)
        output.write_text(json.dumps(record, indent=1))
        print(json.dumps(row), flush=True)

    note(low(output.parent / "features"))
    collect()
    pipeline = random_pipeline(
        PRESET, device="cuda", dtype="bfloat16", text_tokens=TOKENS, text_encoder=True
    )
    for images in (1, 4):
        pipeline.max_batch_size = images
        restart()
        pipeline(["a red apple"] * images, seed=1)
        note(compare("auto", pipeline, images))
    note(repeatability(pipeline))
    collect()
    note(soak(pipeline))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
