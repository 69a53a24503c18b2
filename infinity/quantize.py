"""Block matrices in int8 while drawing, by torchao: half their memory, another picture.

Weights only, one scale per output row; activations stay in the compute dtype.
"""

from torch import nn

from infinity.errors import UserError
from infinity.transformer.block import FFN, CrossAttention, SelfAttention
from infinity.transformer.model import InfinityTransformer


def quantize_int8(transformer: InfinityTransformer) -> None:
    """Puts int8 in the place of every matrix of attention and FFN; call it once, after loading.

    Raises:
        UserError: torchao is not installed.
    """
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise UserError(
            "quantize: int8 needs torchao, which is not installed; pip install torchao"
        ) from error
    for module in transformer.modules():
        if isinstance(module, SelfAttention | CrossAttention | FFN):
            quantize_(module, Int8WeightOnlyConfig(), filter_fn=_is_matrix)


def _is_matrix(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear)
