"""How many CPU threads draw: sums are rounded by how they are divided among them."""

from collections.abc import Iterator
from contextlib import contextmanager


def default_threads(device: str) -> dict[str, int]:
    """The config field that a run on the CPU fills in: torch's own choice."""
    if device != "cpu":
        return {}
    import torch

    return {"threads": torch.get_num_threads()}


@contextmanager
def using_threads(count: int | None) -> Iterator[None]:
    """Lets torch use ``count`` threads inside; None changes nothing."""
    import torch

    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
