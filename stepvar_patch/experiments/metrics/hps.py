"""Human Preference Score v2.1, from its local checkpoint."""

from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float, UInt8
from torch import Tensor

from stepvar_patch.experiments.metrics.clip import Clip, from_open_clip, load_tokenizer
from stepvar_patch.experiments.metrics.weights import read_tensors

_HEADS = 16
"""Of both towers of ViT-H/14, the network of all published checkpoints."""


class HumanPreference:
    """Score of a picture for its prompt: 100 × cosine in a CLIP tuned to human choices.

    Args:
        checkpoint: ``HPS_v2.1_compressed.pt``.
        tokenizer: folder with CLIP's tokenizer.
        device: where it runs.

    Raises:
        UserError: the checkpoint is unreadable, unsafe or of another network.

    Source: Wu et al. 2023 (HPS v2), sec. 5. The pictures are cut to their central square.
    """

    def __init__(self, checkpoint: str | Path, tokenizer: str | Path, device: str) -> None:
        state = read_tensors(checkpoint)
        model = from_open_clip(state, checkpoint, vision_heads=_HEADS, text_heads=_HEADS)
        self._clip = Clip(model.to(device), load_tokenizer(tokenizer))

    def __call__(
        self, images: UInt8[Tensor, "b h w 3"], prompts: Sequence[str]
    ) -> Float[Tensor, " b"]:
        """One score per picture; higher is better, good models reach about 30."""
        return 100 * (self._clip.images(images) * self._clip.texts(prompts)).sum(-1)
