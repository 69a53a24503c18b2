"""StepVAR and its rivals: pruning policies for the Infinity generator.

``stepvar_patch.apply(pipeline, policy)`` puts a policy on a pipeline; the policies are in
``stepvar_patch.policies``.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepvar_patch.patch import Handle, apply

__all__ = ["Handle", "apply"]


def __getattr__(name: str) -> Any:
    """Imports torch only when the patch is asked for, so that the command line starts fast."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from stepvar_patch import patch

    return getattr(patch, name)
