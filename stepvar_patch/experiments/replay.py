"""Making an image again from the provenance inside it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from infinity.checkpoint import source_digest
from infinity.errors import Mistakes, UserError, collecting
from infinity.io.files import check_writable
from infinity.io.images import Provenance, read_png, write_png
from infinity.loading import has_text_encoder
from infinity.quantize import quantize
from stepvar_patch.experiments.maker import settings_of, versions
from stepvar_patch.experiments.plan import resolve_device
from stepvar_patch.experiments.problems import describe, parse
from stepvar_patch.experiments.pruning import draw_pruned, resolve_pruning
from stepvar_patch.experiments.schema import ImageSettings, ReplayTarget
from stepvar_patch.experiments.threads import using_threads


@dataclass(frozen=True, kw_only=True)
class ReplayResult:
    """How the image made again compares with the original.

    Attributes:
        identical: every pixel is the same.
        differing_pixels: how many are not; -1 when the sizes differ.
        largest_difference: of a colour value, 0 to 255; -1 when the sizes differ.
        changed: what is different about this machine: versions, device or dtype, old → new.
    """

    identical: bool
    differing_pixels: int
    largest_difference: int
    changed: dict[str, str]


def replay(
    path: Path,
    load_pipeline: Callable[..., Any],
    *,
    model: str | None = None,
    tokenizer: str | None = None,
    text_encoder: str | None = None,
    device: str | None = None,
    output: Path | None = None,
) -> ReplayResult:
    """Draws an image again and compares the pixels.

    Args:
        path: PNG made by ``stepvar generate``.
        load_pipeline: reads a model directory.
        model: the weights; default: those the image names.
        tokenizer: of an official transformer; default: the one the image names.
        text_encoder: its folder; default: the one the image names.
        device: default: the one the image names.
        output: where to write the new image; default: nowhere.

    Returns:
        The comparison.

    Raises:
        Mistakes: a device or files that are not there, and no place for the output.
        UserError: not an image of ours, damaged settings, or other weights.
    """
    image, provenance = read_png(path)
    settings, target = _settings(path, provenance)
    named = provenance.model
    found: list[str] = []
    with collecting(found):
        used_device, dtype = resolve_device(device or target.device, target.dtype)
    with collecting(found):
        sources = _sources(named, model, tokenizer, text_encoder)
    if output is not None:
        with collecting(found):
            _check_output(output)
    if found:
        raise Mistakes(found)
    weights = sources.pop("model")
    pipeline = load_pipeline(weights, device=used_device, dtype=dtype, **sources)
    if not _share_weights(named, pipeline.digest, Path(weights)):
        raise UserError(
            f"{path} was made with the weights {named['digest'][:12]}… but {weights} holds "
            f"{pipeline.digest[:12]}…; name the right model with --model"
        )
    if target.quantize is not None:
        quantize(pipeline.transformer, target.quantize)
    negative = provenance.negative_prompt
    with using_threads(target.threads if used_device == "cpu" else None):
        again = draw_pruned(
            pipeline,
            resolve_pruning(settings, pipeline.config),
            [provenance.prompt],
            negative_prompt=[negative] if negative else None,
            seed=[provenance.seed],
            **settings_of(settings, pipeline),
        ).images[0]
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        here = {**provenance.settings, "device": used_device.partition(":")[0]}
        write_png(output, again, replace(provenance, settings=here, versions=versions()))
    changed = {
        name: f"{provenance.versions.get(name)} → {now}"
        for name, now in versions().items()
        if provenance.versions.get(name) != now
    }
    if used_device.partition(":")[0] != target.device:
        changed["device"] = f"{target.device} → {used_device}"
    return _compare(np.asarray(image), np.asarray(again.convert(image.mode)), changed)


def _share_weights(named: Mapping[str, object], digest: str, path: Path) -> bool:
    """Whether an image's weights are those at a path, or either was converted from the other."""
    then = [named["digest"], named.get("source")]
    now = [digest, source_digest(path)]
    return any(one == other for one in then for other in now if other is not None)


def _sources(
    named: Mapping[str, Any], model: str | None, tokenizer: str | None, text_encoder: str | None
) -> dict[str, Any]:
    """What to load: what is given, else what the image names, as far as another model wants it.

    Raises:
        Mistakes: all that is neither a file nor a folder.
    """
    sources = {
        "model": model or named["path"],
        "tokenizer": tokenizer or (None if model else named.get("tokenizer")),
        "text_encoder": text_encoder,
    }
    if text_encoder is None and not (model and has_text_encoder(Path(model))):
        sources["text_encoder"] = named.get("text_encoder")
    wrong = [
        f"{name}: {place!r} is neither a file nor a folder; name it with --{name.replace('_', '-')}"
        for name, place in sources.items()
        if place is not None and not _is_file_or_folder(place)
    ]
    if wrong:
        raise Mistakes(wrong)
    return sources


def _check_output(path: Path) -> None:
    """Makes sure that an image can be written there.

    Raises:
        UserError: a folder is in the way, or its own folder is not writable.
    """
    if path.is_dir():
        raise UserError(f"--output: {path} is a folder; give the name of the new image")
    check_writable(path.parent, "--output")


def _is_file_or_folder(place: object) -> bool:
    """Not a device, a pipe or nothing: the image that names it is not trusted."""
    return (
        isinstance(place, str)
        and "\0" not in place
        and (Path(place).is_file() or Path(place).is_dir())
    )


def _settings(path: Path, provenance: Provenance) -> tuple[ImageSettings, ReplayTarget]:
    names = {field.name for field in fields(ReplayTarget)}
    target = {name: value for name, value in provenance.settings.items() if name in names}
    settings = {name: value for name, value in provenance.settings.items() if name not in names}
    problem = describe(ImageSettings, settings, str(path)) or describe(
        ReplayTarget, target, str(path)
    )
    if problem:
        raise UserError(f"damaged stepvar provenance: {problem}")
    return parse(ImageSettings, settings), parse(ReplayTarget, target)


def _compare(before: np.ndarray, after: np.ndarray, changed: dict[str, str]) -> ReplayResult:
    if before.shape != after.shape:
        return ReplayResult(
            identical=False, differing_pixels=-1, largest_difference=-1, changed=changed
        )
    difference = np.abs(before.astype(np.int16) - after.astype(np.int16))
    return ReplayResult(
        identical=not difference.any(),
        differing_pixels=int(difference.any(axis=-1).sum()),
        largest_difference=int(difference.max(initial=0)),
        changed=changed,
    )
