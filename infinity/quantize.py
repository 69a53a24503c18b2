"""Block matrices in int8 or fp8 while drawing, by torchao: half their memory, another picture.

Weights only, one scale per output row; activations stay in the compute dtype.
"""

from typing import Any

from torch import nn

from infinity.config import Quantization
from infinity.errors import UserError
from infinity.transformer.block import FFN, CrossAttention, SelfAttention
from infinity.transformer.model import InfinityTransformer


def quantize(transformer: InfinityTransformer, kind: Quantization) -> None:
    """Puts ``kind`` in the place of every matrix of attention and FFN; call it once, after loading.

    Raises:
        UserError: torchao is not installed.
    """
    try:
        from torchao.quantization import quantize_
    except ImportError as error:
        raise UserError(f"quantize: {kind} needs torchao; pip install torchao") from error
    config = _config(kind)
    for module in transformer.modules():
        if isinstance(module, SelfAttention | CrossAttention | FFN):
            quantize_(module, config, filter_fn=_is_matrix)


def _config(kind: Quantization) -> Any:
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

    return Int8WeightOnlyConfig() if kind == "int8" else Float8WeightOnlyConfig()


def _is_matrix(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear)
