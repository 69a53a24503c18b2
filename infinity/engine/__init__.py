"""The generator made fast: fused blocks and decoder, and calls recorded into CUDA graphs."""

from infinity.engine.engine import Engine, refuse_mode

__all__ = ["Engine", "refuse_mode"]
