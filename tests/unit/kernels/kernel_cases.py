"""Devices, shapes and tolerances of the kernels' tests.

Kernels run on CPU tensors with ``TRITON_INTERPRET=1`` where triton is installed, and with
``-m gpu`` on a CUDA device.
"""

import pytest
import torch
from torch import Tensor

from infinity.ops.fused import support

CPU = pytest.param(
    "cpu",
    marks=pytest.mark.skipif(
        not support.INTERPRETED or support.triton is None,
        reason="needs triton and TRITON_INTERPRET=1",
    ),
)
CUDA = pytest.param("cuda", marks=pytest.mark.gpu)
devices = pytest.mark.parametrize("device", [CPU, CUDA])
DTYPE = {"cpu": torch.float32, "cuda": torch.bfloat16}
LIMIT = {torch.float32: 3e-6, torch.bfloat16: 6e-3}


def draw(*shape: int, device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(device, dtype)


def close(fast: Tensor, exact: Tensor, limit: float) -> None:
    error = (fast.float() - exact.float()).norm() / exact.float().norm()
    assert error <= limit, f"relative error {error:.2e}"


ROWS = [(7, 7), (1, 1), (5, 3, 8)]
