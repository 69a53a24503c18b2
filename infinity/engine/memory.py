"""Memory of the caches that recorded calls share."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class KeptMemory:
    """Memory that outlives a call, by name; asking for more than there is makes it anew."""

    device: torch.device
    grown: Callable[[], None] = lambda: None
    _pieces: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A finite tensor of ``shape``; what it gives under a name replaces what it gave before."""
        count = torch.Size(shape).numel()
        have = self._pieces.get(name)
        if have is None or have.numel() < count or have.dtype != dtype:
            if torch.cuda.is_current_stream_capturing():
                raise RuntimeError(f"no memory was set aside for {name}")
            self._pieces.pop(name, None)
            del have
            self.grown()
            self._pieces[name] = torch.zeros(count, dtype=dtype, device=self.device)
        return self._pieces[name][:count].view(shape)
