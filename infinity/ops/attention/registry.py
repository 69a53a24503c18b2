"""Attention backends by name, and the choice among them."""

import logging
from collections.abc import Callable
from functools import lru_cache

from infinity.errors import UserError
from infinity.ops.attention.base import AttentionBackend, AttentionRequest

logger = logging.getLogger(__name__)

DENSE_ORDER = ("sdpa",)
"""Equal rows: SDPA reaches cuDNN's kernel, level with the best packed one (528 against 500-559
TFLOP/s for 4096 queries on 10521 keys, two rows, H200) and ahead of the others (329), without JIT
compilation and on every device; it serves all requests, so nothing comes after it."""

FEW_ORDER = ("triton", "sdpa")
"""Equal rows with few queries on Hopper: cuDNN clears a counter before each call, which with the
gaps around it takes 7 µs of an H200, where its kernel takes 13 µs (256 queries a row, 521 keys).
"""

RAGGED_ORDER = ("flash_attn_4", "torch_varlen", "flash_attn", "xformers", "sdpa")
"""Unequal rows on CUDA, by measured speed (H200, 2048 on 6470 and 1638 on 5900): FlashAttention-4
417 TFLOP/s, torch's varlen, a FlashAttention-2 kernel, 277. flash_attn and xformers run that same
kernel behind an extra install, so they come after it; SDPA pads and masks."""

_loaders: dict[str, Callable[[], AttentionBackend]] = {}
_LOAD_ERRORS = (ImportError, OSError, RuntimeError, AttributeError)


def register(name: str, loader: Callable[[], AttentionBackend]) -> None:
    """Makes a backend known; ``loader`` imports it on first use and may raise ``ImportError``."""
    _loaders[name] = loader
    for cached in (_load, select):
        cached.cache_clear()


def names() -> list[str]:
    """Registered backends, in order of registration."""
    return list(_loaders)


@lru_cache
def _load(name: str) -> AttentionBackend | str:
    try:
        return _loaders[name]()
    except _LOAD_ERRORS as error:
        return f"cannot be imported ({type(error).__name__}: {error})"


def _reason(name: str, request: AttentionRequest) -> str | None:
    backend = _load(name)
    return backend if isinstance(backend, str) else backend.supports(request)


def support_table(request: AttentionRequest) -> list[tuple[str, str | None]]:
    """Every backend with ``None`` if it serves ``request``, else the reason why not."""
    return [(name, _reason(name, request)) for name in _loaders]


def _order(request: AttentionRequest) -> tuple[str, ...]:
    if request.device_type != "cuda":
        return DENSE_ORDER
    if request.ragged:
        return RAGGED_ORDER
    hopper = request.capability is not None and request.capability[0] == 9
    return FEW_ORDER if hopper and request.few else DENSE_ORDER


@lru_cache(maxsize=256)
def select(name: str, request: AttentionRequest) -> AttentionBackend:
    """The backend to use for calls like ``request``.

    Args:
        name: a registered name, which never falls back, or ``"auto"``: the first supported one of
            :data:`RAGGED_ORDER` for ragged rows on CUDA, of :data:`FEW_ORDER` for few queries on
            Hopper, else of :data:`DENSE_ORDER`.
        request: what the calls will look like.

    Raises:
        UserError: unknown name, or the named backend cannot serve the request.
    """
    if name != "auto":
        if name not in _loaders:
            raise UserError(f"attention={name}: unknown backend; use auto, {', '.join(_loaders)}")
        if (reason := _reason(name, request)) is not None:
            raise UserError(f"attention={name}: {reason}")
        backend = _load(name)
        assert not isinstance(backend, str)
        return backend
    passed_over: list[str] = []
    for candidate in _order(request):
        backend, reason = _load(candidate), _reason(candidate, request)
        if reason is None and not isinstance(backend, str):
            if passed_over:
                logger.info("attention: %s; passed over: %s", candidate, "; ".join(passed_over))
            return backend
        passed_over.append(f"{candidate} ({reason})")
    raise UserError(f"attention=auto: no backend serves {request}: {'; '.join(passed_over)}")
