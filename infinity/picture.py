"""The shape of a picture: which schedule draws it, and how many pixels it has."""

from numbers import Integral, Real

from infinity.config import ModelConfig, Resolution
from infinity.errors import UserError
from infinity.schedule import TEMPLATES, ScaleSchedule, scale_schedule


def picture_schedule(
    config: ModelConfig,
    *,
    aspect_ratio: float | None = None,
    height: int | None = None,
    width: int | None = None,
    resolution: Resolution | None = None,
) -> ScaleSchedule:
    """The schedule on which ``config``'s model draws a picture; square by default.

    Args:
        config: of the model.
        aspect_ratio: height / width, mapped to the nearest template.
        height: pixels; with ``width``, instead of ``aspect_ratio``; must be a template's size.
        width: pixels.
        resolution: another resolution class than the model's own.

    Raises:
        UserError: height and width are not both given, are given beside aspect_ratio, or are no
            size that a template of this model has; the ratio is not positive and finite; or the
            tokenizer has an amplitude for fewer scales than the resolution.
    """
    if (height is None) != (width is None):
        raise UserError("height and width must be given together")
    if height is not None and aspect_ratio is not None:
        raise UserError("give either aspect_ratio or height and width, not both")
    ratio = 1.0 if aspect_ratio is None else aspect_ratio
    if not isinstance(ratio, Real):
        raise UserError(f"aspect_ratio is {ratio!r}; allowed: a number, height over width")
    if height is not None and width is not None:
        if not all(isinstance(side, Integral) and side > 0 for side in (height, width)):
            raise UserError(f"height × width is {height} × {width}; allowed: positive pixels")
        ratio = height / width
    try:
        found = _template(config, ratio, resolution)
    except ValueError as error:
        raise UserError(str(error)) from error
    gains = config.tokenizer.scale_gains
    if 0 < gains < len(found):
        raise UserError(
            f"resolution {found.resolution} has {len(found)} scales, but the model's tokenizer was "
            f"trained on {gains}"
        )
    if height is not None and pixel_size(config, found) != (height, width):
        sizes = (pixel_size(config, _template(config, r, resolution)) for r in TEMPLATES)
        allowed = ", ".join(f"{h} × {w}" for h, w in sizes)
        raise UserError(f"height × width is {height} × {width}; allowed: {allowed}")
    return found


def pixel_size(config: ModelConfig, schedule: ScaleSchedule) -> tuple[int, int]:
    """``(height, width)`` of a picture drawn on ``schedule``."""
    h, w = schedule.latent_grids(config.transformer.patchify)[-1]
    return h * config.tokenizer.patch_size, w * config.tokenizer.patch_size


def _template(config: ModelConfig, ratio: float, resolution: Resolution | None) -> ScaleSchedule:
    return scale_schedule(ratio, resolution or config.resolution, config.transformer.rope_reference)
