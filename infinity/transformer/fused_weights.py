"""A block's parameters in the form that the kernels read, and their matrix products.

Shape legend: T tokens of all rows end to end, C width.
"""

import logging

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infinity.ops.fused.residual_norm import Affine, Quantised, quantise_rows
from infinity.transformer.block import Block, head_scales

logger = logging.getLogger(__name__)


class Product:
    """A matrix product with bias, in the weight's dtype or in fp8."""

    def __init__(self, weight: Tensor, bias: Tensor, fp8: bool) -> None:
        self.weight, self.bias = weight, bias.to(weight.dtype)
        self.quantised = quantise_rows(weight) if fp8 else None
        self._unsupported: set[int] = set()

    def __call__(self, h: Tensor | Quantised) -> Tensor:
        if isinstance(h, Tensor):
            return F.linear(h, self.weight, self.bias)
        assert self.quantised is not None
        if len(h.values) not in self._unsupported:
            try:
                return self._scaled(h, self.quantised)
            except RuntimeError as error:
                if "NOT_SUPPORTED" not in str(error):
                    raise
                self._unsupported.add(len(h.values))
                shape = (len(h.values), *self.weight.shape)
                logger.warning("fp8: cuBLASLt has no product of %s; it runs in bf16", shape)
        exact = h.values.to(self.weight.dtype) * h.scale[:, None].to(self.weight.dtype)
        return F.linear(exact, self.weight, self.bias)

    def _scaled(self, h: Quantised, weight: Quantised) -> Tensor:
        return torch._scaled_mm(
            h.values,
            weight.values.t(),
            scale_a=h.scale[:, None],
            scale_b=weight.scale[None],
            bias=self.bias,
            out_dtype=self.weight.dtype,
            use_fast_accum=True,
        )

    def gelu(self, h: Tensor) -> Tensor:
        """The tanh-approximated GELU of the product, in its epilogue where the device has one."""
        if h.is_cuda:
            return torch._addmm_activation(self.bias, h, self.weight.t(), use_gelu=True)
        return F.gelu(self(h), approximate="tanh")


class FusedLayer:
    """A block's parameters in the form that the kernels read."""

    def __init__(self, block: Block, fp8: bool) -> None:
        sa, ca, ffn = block.sa, block.ca, block.ffn
        self.heads, self.head_dim, self.eps = sa.heads, sa.head_dim, block.eps
        bias = torch.cat([sa.q_bias, sa.zero_k_bias, sa.v_bias])
        self.qkv = Product(sa.mat_qkv.weight, bias, fp8)
        self.head_scales = head_scales(sa.scale_mul_1H11).flatten().contiguous()
        self.proj = _linear(sa.proj, fp8)
        self.text_norm = Affine(block.ca_norm.weight.float(), block.ca_norm.bias.float())
        self.text_q, self.text_proj = _linear(ca.mat_q, fp8), _linear(ca.proj, fp8)
        self.text_kv = Product(ca.mat_kv.weight, torch.cat([ca.zero_k_bias, ca.v_bias]), False)
        self.up, self.down = _linear(ffn.fc1, fp8), _linear(ffn.fc2, fp8)


def _linear(layer: nn.Linear, fp8: bool) -> Product:
    return Product(layer.weight, layer.bias, fp8)
