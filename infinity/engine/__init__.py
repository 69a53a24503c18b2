"""The generator made fast: fused blocks and decoder, and calls recorded into CUDA graphs."""

from infinity.engine.engine import Engine

__all__ = ["Engine"]
