"""Weights of metric networks, read from local files without running anything in them."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from infinity.checkpoint.lazy import load_pickle, safetensors_state
from infinity.errors import UserError


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` or torch file, a ``state_dict`` entry unwrapped.

    Raises:
        UserError: unreadable, or it holds more than tensors and plain values.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return dict(safetensors_state([path]))
    content = load_pickle(path)
    inner = content.get("state_dict", content)
    return {key: value for key, value in inner.items() if isinstance(value, Tensor)}


def load_strictly(
    module: nn.Module, state: Mapping[str, Tensor], path: str | Path, ignore: tuple[str, ...] = ()
) -> None:
    """Fills a module with exactly the tensors it has.

    Args:
        module: to fill.
        state: tensors under the module's names.
        path: names the file in the sentence.
        ignore: endings of keys that may be missing or left over.

    Raises:
        UserError: a key is missing, left over or of another shape.
    """
    try:
        missing, left = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise UserError(f"{path}: not the expected network ({lines[-1].strip()})") from error
    wrong = [f"{key} is missing" for key in missing if not key.endswith(ignore or ("\0",))]
    wrong += [f"{key} is unknown" for key in left if not key.endswith(ignore or ("\0",))]
    if wrong:
        more = f" and {len(wrong) - 1} more" if wrong[1:] else ""
        raise UserError(f"{path}: not the expected network ({wrong[0]}{more})")
