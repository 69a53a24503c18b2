"""Fills modules from state dicts, strictly."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from infinity.checkpoint.lazy import Shape, shapes_of
from infinity.checkpoint.rules import match_keys
from infinity.errors import UserError


def load_into(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    context: str,
    device: torch.device | str | None = None,
) -> None:
    """Copies ``tensors`` into ``module``, one at a time and in the module's own dtypes.

    A missing ``zero_k_bias`` becomes zero; a shorter ``cfg_uncond`` leaves the module's last rows
    alone and a longer one is cut; see :mod:`infinity.checkpoint.rules` for the accepted names.

    Args:
        module: a module with memory, or one built on the meta device.
        tensors: a plain or lazy state dict.
        context: the file or folder they come from, for messages.
        device: where the tensors of a meta module go; the CPU if not given.

    Raises:
        UserError: all missing, unexpected and misshapen keys, an integer where a float belongs, or
            NaN or infinity in any tensor.
    """
    broken: list[str] = []
    targets = module.state_dict()
    sources = match_keys(shapes_of(tensors), shapes_of_module(module), context)
    for key, target in targets.items():
        if target.is_meta:
            target = torch.zeros(target.shape, dtype=target.dtype, device=device or "cpu")
            _replace(module, key, target)
        source = sources.get(key)
        if source is None:
            target.zero_()
            continue
        value = tensors[source]
        if target.is_floating_point() and not value.is_floating_point():
            kind = str(value.dtype).removeprefix("torch.")
            raise UserError(f"{context}: tensor {source} is {kind}, not floating point")
        with torch.no_grad():
            if key == "cfg_uncond":
                rows = min(len(value), len(target))
                target[:rows].copy_(value[:rows])
            else:
                target.copy_(value.reshape(target.shape))
            if not is_finite(target):
                broken.append(source)
    refuse_broken(broken, context)


@torch.no_grad()
def is_finite(value: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity.

    The sum decides without a second tensor in memory; only an odd one is looked at in full.
    """
    if not value.is_floating_point() or bool(value.sum(dtype=torch.float32).isfinite()):
        return True
    return bool(value.isfinite().all())


def refuse_broken(names: Sequence[str], context: str) -> None:
    """Raises when tensors were found that hold NaN or infinity.

    Raises:
        UserError: ``names`` is not empty.
    """
    if names:
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise UserError(
            f"{context}: there is NaN or infinity in {shown}; the file is damaged or its training "
            "diverged"
        )


def shapes_of_module(module: nn.Module) -> dict[str, Shape]:
    """Shape of everything in the module's state dict."""
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def _replace(module: nn.Module, key: str, value: Tensor) -> None:
    path, _, name = key.rpartition(".")
    owner = module.get_submodule(path)
    if name in owner._parameters:
        old = owner._parameters[name]
        assert old is not None
        owner._parameters[name] = nn.Parameter(value, requires_grad=old.requires_grad)
    else:
        owner._buffers[name] = value
