"""Floating-point operations that really ran, counted in the dispatcher."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def count_flops(work: Callable[[], object]) -> int:
    """FLOPs of the matrix products, convolutions and attention that ``work`` runs; a
    multiply-add is 2.

    Args:
        work: called once; it runs slower than without counting.
    """
    mapping = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention}
    with torch.inference_mode(), FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        work()
    return int(counter.get_total_flops())


def _cpu_attention(
    q_shape: Any, k_shape: Any, v_shape: Any, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    """The counter knows PyTorch's attention kernels for GPUs, but not this one."""
    return int(sdpa_flop_count(q_shape, k_shape, v_shape))
