"""Triton kernels, each in one file with the torch function that defines what it computes.

Every public function takes the kernel where :func:`usable` says so and the torch form elsewhere;
``tests/unit/kernels`` holds the two together.
"""

from infinity.ops.fused.support import usable, why_not

__all__ = ["usable", "why_not"]
