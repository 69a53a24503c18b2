"""The memory formula against tensors followed one by one, on shapes small enough for the CPU."""

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from infinity.config import PRESETS, ModelConfig, Resolution
from infinity.memory import batch_that_fits, memory_need
from infinity.picture import picture_schedule
from infinity.policy import DensePolicy
from infinity.sampling.loop import ScaleLoop
from infinity.sampling.noise import PerImageNoise
from infinity.sampling.settings import resolve_settings
from infinity.text.base import TextFeatures
from infinity.tokenizer.autoencoder import BSQTokenizer
from infinity.tokenizer.banded import BandedDecoder
from infinity.transformer.model import InfinityTransformer


class Follow(TorchDispatchMode):
    """Bytes of all storages that operations made and that still live."""

    def __init__(self) -> None:
        super().__init__()
        self._live: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = op(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._live:
                    self._live[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._free, storage._cdata)
                    self.peak = max(self.peak, self.now)
        return out

    def _free(self, key: int) -> None:
        self.now -= self._live.pop(key)


def shapes(depth: int, width: int, resolution: Resolution) -> ModelConfig:
    model = PRESETS["infinity-2b"]
    transformer = replace(
        model.transformer, depth=depth, width=width, heads=width // 128, block_chunks=1
    )
    return replace(model, resolution=resolution, transformer=transformer)


@pytest.mark.parametrize(
    ("depth", "width", "dtype", "images"),
    [(1, 256, torch.bfloat16, 1), (2, 512, torch.bfloat16, 2), (2, 512, torch.float32, 1)],
)
def test_scales_need_what_is_predicted(
    depth: int, width: int, dtype: torch.dtype, images: int
) -> None:
    config = shapes(depth, width, "0.25M")
    model = InfinityTransformer(config.transformer).set_compute_dtype(dtype).requires_grad_(False)
    schedule = picture_schedule(config)
    settings = resolve_settings(config.sampling, len(schedule), depth)
    rows = TextFeatures.stack([torch.randn(12, 2048) for _ in range(images)])
    with torch.inference_mode(), Follow() as follow:
        text = model.with_unconditional(rows)
        noise = PerImageNoise(tuple(range(images)), torch.device("cpu"))
        ScaleLoop(
            model,
            model.condition(text),
            schedule,
            settings,
            noise,
            DensePolicy(),
            images=images,
            attention="sdpa",
        ).finish()
    need = memory_need(config, schedule, images=images, guided=True, dtype=dtype)
    assert (need.cache + need.work) / follow.peak == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("banded", [False, True])
def test_the_decoder_needs_what_is_predicted(banded: bool) -> None:
    config = replace(
        PRESETS["infinity-2b"],
        resolution="0.06M",
        tokenizer=replace(PRESETS["infinity-2b"].tokenizer, channels=64),
    )
    schedule = picture_schedule(config)
    tokenizer = BSQTokenizer(config.tokenizer).eval().requires_grad_(False)
    decoder = BandedDecoder(tokenizer.decoder, 1 << 18) if banded else tokenizer.decoder
    z = torch.randn(1, 32, *schedule.latent_grids(False)[-1])
    with torch.inference_mode(), Follow() as follow:
        decoder(z)
    need = memory_need(config, schedule, images=1, guided=True, dtype=torch.float32)
    if banded:
        assert follow.peak < 0.75 * need.decode
    else:
        assert need.decode / follow.peak == pytest.approx(1, abs=0.15)


def test_a_gpu_decodes_small_pictures_together() -> None:
    config = PRESETS["infinity-125m"]
    schedule, words = picture_schedule(config), {"guided": True, "dtype": torch.bfloat16}
    one, four, many = (memory_need(config, schedule, images=n, **words) for n in (1, 4, 99))
    assert four.decode == 4 * one.decode
    assert many.decode == 16 * one.decode
    assert many.decode_banded == one.decode_banded


def test_weights_are_counted_to_the_byte() -> None:
    config = shapes(2, 256, "0.06M")
    model = InfinityTransformer(config.transformer).set_compute_dtype(torch.bfloat16)
    need = memory_need(
        config, picture_schedule(config), images=1, guided=False, dtype=torch.bfloat16
    )
    assert need.transformer == sum(value.nbytes for value in model.state_dict().values())
    assert need.peak("low") < need.peak("auto")


def test_recorded_calls_keep_the_cache_while_decoding() -> None:
    config = PRESETS["infinity-2b"]
    plain, recorded = (
        memory_need(
            config,
            picture_schedule(config),
            images=1,
            guided=True,
            dtype=torch.bfloat16,
            recorded=recorded,
        )
        for recorded in (False, True)
    )
    scales = plain.cache + plain.work
    kept = plain.cache + plain.decode
    assert recorded.peak("auto") - plain.peak("auto") == kept - max(scales, plain.decode) > 0
    assert recorded.peak("low") == plain.peak("low")


@pytest.mark.parametrize(
    ("name", "gib", "images"),
    [("embedded", 8, 8), ("infinity-2b", 24, 2), ("infinity-2b", 141, 8), ("infinity-8b", 80, 4)],
)
def test_as_many_pictures_are_drawn_at_once_as_a_card_holds(
    name: str, gib: int, images: int
) -> None:
    assert batch_that_fits(PRESETS[name], torch.bfloat16, gib << 30) == images
    assert batch_that_fits(PRESETS[name], torch.bfloat16, 0) == 1
