"""The family's text encoder: flan-T5's encoder through transformers, from a local folder."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from infinity.checkpoint.load import is_finite, refuse_broken
from infinity.errors import UserError
from infinity.text.base import CutPrompts, TextFeatures
from infinity.text.graphs import EncoderGraphs
from infinity.upload import upload

logger = logging.getLogger(__name__)


class T5Encoder:
    """Last hidden states of a T5 encoder, in fp32, one prompt at a time and unpadded.

    The original pads to 512 and masks; masked positions get no attention, so the rows are the same
    up to rounding (spec: infinity-transformer §4.1).

    Args:
        model: transformers' ``T5EncoderModel``, in evaluation mode.
        tokenizer: gives ``input_ids``, the end token included.
        max_tokens: longer prompts are cut, the end token included.
    """

    def __init__(self, model: Any, tokenizer: Callable[..., Any], *, max_tokens: int) -> None:
        self._model, self._tokenizer = model, tokenizer
        self.width: int = model.config.d_model
        self.max_tokens = max_tokens
        self._cut = CutPrompts(max_tokens)
        on_gpu = model.device.type == "cuda"
        self._graphs = EncoderGraphs(self._masked, model.device) if on_gpu else None

    @classmethod
    def from_directory(
        cls, folder: str | Path, *, max_tokens: int, device: torch.device, dtype: torch.dtype
    ) -> "T5Encoder":
        """The encoder in a local folder.

        Args:
            folder: a transformers checkpoint of a T5 encoder or encoder-decoder with its tokenizer,
                e.g. a local copy of google/flan-t5-xl.
            max_tokens: see the class.
            device: where the encoder runs.
            dtype: of its weights; transformers keeps the FFN outputs of a float16 T5 in float32.

        Raises:
            UserError: the folder is missing or does not hold a whole checkpoint of such a model, or
                its weights are not finite.
        """
        from transformers import AutoTokenizer, T5EncoderModel

        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise UserError(
                f"text encoder folder {folder} must be a local copy of google/flan-t5-xl, "
                "but it has no config.json"
            )
        try:
            local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
            tokenizer = AutoTokenizer.from_pretrained(folder, **local)
            with _without_progress_bar():
                model, found = T5EncoderModel.from_pretrained(
                    folder, dtype=dtype, output_loading_info=True, **local
                )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(f"text encoder folder {folder} cannot be loaded: {reason}") from error
        if missing := sorted(found["missing_keys"]):
            raise UserError(
                f"text encoder folder {folder} lacks {len(missing)} tensors of its encoder, "
                f"{missing[0]} among them; copy it again"
            )
        model.eval().requires_grad_(False).to(device)
        broken = [name for name, value in model.named_parameters() if not is_finite(value)]
        refuse_broken(broken, str(folder))
        return cls(model, tokenizer, max_tokens=max_tokens)

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        """Features of ``prompts``; an empty prompt has one row, its end token."""
        return TextFeatures.stack([self._encode_one(prompt) for prompt in prompts])

    def _encode_one(self, prompt: str) -> torch.Tensor:
        ids = self._tokenizer(prompt, truncation=True, max_length=self.max_tokens).input_ids
        if len(ids) == self.max_tokens < len(self._tokenizer(prompt, verbose=False).input_ids):
            self._cut.tell(prompt)
        if self._graphs is not None:
            return self._graphs(ids)
        input_ids = upload(torch.tensor([ids]), self._model.device)
        return self._model(input_ids=input_ids).last_hidden_state[0].float()

    def _masked(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self._model(input_ids=ids, attention_mask=mask).last_hidden_state


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    """Keeps transformers from drawing its own bar over the caller's."""
    from transformers.utils import logging as settings

    enabled = settings.is_progress_bar_enabled()
    settings.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            settings.enable_progress_bar()
