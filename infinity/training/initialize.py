"""Fresh weights of the transformer.

Source: spec infinity-transformer §11 "Init"; Infinity (arXiv 2412.04431).
"""

import math

import torch
from torch import Tensor, nn

from infinity.transformer.model import InfinityTransformer


def _truncated(tensor: Tensor, std: float) -> None:
    """Normal values of the given deviation, redrawn outside the absolute bounds ±2."""
    nn.init.trunc_normal_(tensor, std=std)


@torch.no_grad()
def initialize(model: InfinityTransformer) -> InfinityTransformer:
    """``model`` with freshly drawn weights, from torch's global generator.

    Residual branches start scaled by 1/sqrt(2·depth), gates nearly closed, the head nearly flat.
    """
    config = model.config
    std = math.sqrt(1 / (3 * config.width))
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            _truncated(module.weight, std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
    _truncated(model.cfg_uncond, 1.2 / math.sqrt(config.text_width))
    _truncated(model.pos_start, std)
    _truncated(model.text_proj_for_sos.ca.mat_q, std)
    model.head.weight.mul_(0.02)
    model.head_nm.ada_lin[1].weight.mul_(1e-3)
    for block in model.layers():
        for linear in (block.sa.proj, block.ca.proj, block.ffn.fc2):
            linear.weight.div_(math.sqrt(2 * config.depth))
        block.sa.scale_mul_1H11.fill_(math.log(4))
        block.ada_gss.normal_(std=1 / math.sqrt(config.width))
        block.ada_gss[:, :, :2].mul_(5e-6)
        block.ada_gss[:, :, 2:].mul_(1e-3)
    return model


_NO_DECAY = ("cfg_uncond", "pos_start", "lvl_embed", "ada_gss", "scale_mul", "sos.ca.mat_q")


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: to matrices, except tables, gates and scales."""
    return parameter.ndim >= 2 and not any(part in name for part in _NO_DECAY)
