"""A text encoder's forward pass recorded into CUDA graphs, one per padded length."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from infinity.upload import upload

logger = logging.getLogger(__name__)
PADDED = 64


@dataclass(frozen=True)
class _Graph:
    inputs: Tensor
    graph: torch.cuda.CUDAGraph
    out: Tensor


class EncoderGraphs:
    """Runs an encoder on token ids padded to a multiple of 64 and masked.

    The rows are the unpadded ones up to rounding. Where the encoder cannot be recorded, it runs as
    it is, with the reason in the log.

    Args:
        forward: ``(ids (1, n), mask (1, n)) → features (1, n, width)``, both int64.
        device: a CUDA device.

    Attributes:
        recorded: whether passes are recorded.
    """

    def __init__(self, forward: Callable[[Tensor, Tensor], Tensor], device: torch.device) -> None:
        self._forward, self._device = forward, device
        self._graphs: dict[int, _Graph] = {}
        self.recorded = True

    @torch.inference_mode()
    def __call__(self, ids: Sequence[int]) -> Float[Tensor, "n width"]:
        """Features of one prompt, fp32."""
        room = -(-len(ids) // PADDED) * PADDED
        host = torch.zeros(2, 1, room, dtype=torch.int64)
        host[0, 0, : len(ids)] = torch.tensor(ids)
        host[1, 0, : len(ids)] = 1
        if self.recorded and room not in self._graphs:
            try:
                self._graphs[room] = self._record(host)
            except RuntimeError as error:
                self.recorded = False
                logger.warning("text encoder: not recorded: %s", str(error).splitlines()[0])
        if not self.recorded:
            inputs = upload(host, self._device)[:, :, : len(ids)]
            return self._forward(*inputs)[0].float()
        recorded = self._graphs[room]
        recorded.inputs.copy_(upload(host, self._device))
        recorded.graph.replay()
        return recorded.out[0, : len(ids)].to(torch.float32, copy=True)

    def _record(self, host: Tensor) -> _Graph:
        inputs = host.to(self._device)
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(2):
                self._forward(*inputs)
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            out = self._forward(*inputs)
        return _Graph(inputs, graph, out)
