"""A run checked before anything is created and any weight is read: all its mistakes at once."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from infinity.config import PRESETS, ModelConfig
from infinity.errors import Mistakes, UserError, collecting
from infinity.io.files import check_writable
from infinity.io.manifest import check_resumable
from infinity.io.prompts import count_prompts
from infinity.picture import picture_schedule
from stepvar_patch.experiments.loading import Draft, read_config
from stepvar_patch.experiments.plan import resolve_device
from stepvar_patch.experiments.problems import find_problems, parse
from stepvar_patch.experiments.pruning import policy_request, resolve_pruning, sampling_settings
from stepvar_patch.experiments.schema import GenerateConfig, ImageSettings, fixed_on_resume
from stepvar_patch.experiments.threads import default_threads

_MODEL = frozenset(["model", "tokenizer"])


@dataclass(frozen=True, kw_only=True)
class CheckedRun:
    """What is known of a run before weights are read.

    Attributes:
        images: of the run, finished ones included.
        digest: of the model directory; ``None`` for official files, which are hashed when loaded.
        device: where it runs.
        dtype: in which precision.
        model: its shapes.
    """

    images: int
    digest: str | None
    device: str
    dtype: str
    model: ModelConfig

    @property
    def device_type(self) -> str:
        """``cpu`` or ``cuda``, without the number of the GPU."""
        return self.device.partition(":")[0]


def loaded_as(config: GenerateConfig, checked: CheckedRun) -> tuple[Any, ...]:
    """Model, tokenizer, text encoder, device and dtype: runs alike in these share a pipeline."""
    return config.model, config.tokenizer, config.text_encoder, checked.device, checked.dtype


def load_run(
    path: Path,
    overrides: Sequence[str],
    shape: ModelConfig | None = None,
    *,
    drawing: bool = False,
) -> tuple[GenerateConfig, CheckedRun]:
    """The config of ``stepvar generate`` and what was found when its run was checked.

    Args:
        path: the YAML file.
        overrides: ``key=value`` words.
        shape: see `check`.
        drawing: whether the run is about to begin, or to go on in a folder that may hold another.

    Raises:
        Mistakes: all that the config, the files it names, the prompts, the model and the folders
            show; where the config is wrong, what rests on right values is checked all the same.
    """
    draft = read_config(GenerateConfig, path, overrides)
    found = list(map(str, draft.problems))
    if not draft.problems:
        config, unknown = parse(GenerateConfig, draft.values), frozenset[str]()
    else:
        config, unknown = _as_far_as_known(draft, str(path), found)
    with collecting(found):
        checked = check(config, shape, generating=True, unknown=unknown)
    if drawing and "output" not in unknown:
        with collecting(found):
            _check_earlier(config, unknown)
    if found:
        raise Mistakes(found)
    return config, checked


def _check_earlier(config: GenerateConfig, unknown: frozenset[str]) -> None:
    """Makes sure that the output folder holds no run with other settings.

    On a GPU the card decides over ``memory``, which is compared when the folder is opened.
    """
    try:
        device, dtype = resolve_device(config.device, config.dtype)
    except UserError:
        return
    resolved = {**asdict(config), "device": device, "dtype": dtype}
    hidden = unknown if device == "cpu" else unknown | {"memory"}
    defaults = default_threads(device)
    check_resumable(Path(config.output), resolved, fixed_on_resume, defaults, hidden)


def _as_far_as_known(
    draft: Draft, source: str, found: list[str]
) -> tuple[GenerateConfig, frozenset[str]]:
    """The config with stand-ins for what is wrong, and the names of the fields that have one.

    Args:
        draft: with mistakes.
        source: names the file in sentences.
        found: takes mistakes that only the others together show.
    """
    required = {"model": "-", "prompts": "-", "output": "-"}
    known = {name: value for name, value in draft.values.items() if name not in draft.unknown}
    unknown = draft.unknown | required.keys() - known.keys()
    together = list(find_problems(GenerateConfig, {**required, **known}, source, {}))
    if together:
        found += map(str, together)
        settings = {field.name for field in fields(ImageSettings)}
        known = {name: value for name, value in known.items() if name not in settings}
        unknown |= settings
    return parse(GenerateConfig, {**required, **known}), unknown


def check(
    config: GenerateConfig,
    shape: ModelConfig | None = None,
    *,
    generating: bool = False,
    unknown: frozenset[str] = frozenset(),
) -> CheckedRun:
    """Checks all of a run that can be checked without reading weights.

    Args:
        config: of the run.
        shape: stands in for the model's files, which are then not looked at.
        generating: whether it is for ``stepvar generate``, which alone saves memory and writes
            into the config's own folders.
        unknown: fields whose value is a stand-in; what rests on them is not checked.

    Returns:
        What was found.

    Raises:
        Mistakes: all in prompts, settings, pruning, model, text encoder and folders, and a GPU
            that is not there.
    """
    found: list[str] = []
    device, dtype = "cpu", "float32"
    with collecting(found):
        device, dtype = resolve_device(config.device, config.dtype)
    if not generating and (config.memory, config.quantize) != ("auto", None):
        found.append(
            "memory and quantize are for stepvar generate; here they must be auto and null"
        )
    if config.quantize is not None and find_spec("torchao") is None:
        found.append(f"quantize: {config.quantize} needs torchao; pip install torchao")
    images = 0
    if "prompts" not in unknown:
        with collecting(found):
            each = config.images_per_prompt
            images = each * count_prompts(Path(config.prompts), each)
    identity, model = None, shape
    if shape is None and not unknown & _MODEL:
        with collecting(found):
            identity, model = _identify(config)
    if shape is None and "text_encoder" not in unknown:
        with collecting(found):
            _check_text_encoder(config, model)
    if model is not None:
        found += _misfits(config, model)
    if generating:
        for name in ("output", "text_cache"):
            if name not in unknown and (place := getattr(config, name)) is not None:
                with collecting(found):
                    check_writable(Path(place), name)
    if found:
        raise Mistakes(found)
    assert model is not None or unknown
    return CheckedRun(
        images=images,
        digest=identity,
        device=device,
        dtype=dtype,
        model=model or PRESETS["embedded"],
    )


def _misfits(config: GenerateConfig, model: ModelConfig) -> list[str]:
    """What the settings ask of a model that it cannot give."""
    found: list[str] = []
    if config.shape is not None:
        with collecting(found):
            _check_shape(config, model)
    with collecting(found):
        policy_request(model, config)
    with collecting(found):
        sampling_settings(config, model, picture_schedule(model, resolution=config.resolution))
    with collecting(found):
        resolve_pruning(config, model)
    return found


def _check_shape(config: GenerateConfig, model: ModelConfig) -> None:
    wanted = PRESETS[str(config.shape)]
    pairs: list[tuple[Any, Any]] = [
        (wanted.transformer, model.transformer),
        (wanted.tokenizer, model.tokenizer),
    ]
    other = [
        f"{name} {getattr(found, name)} instead of {getattr(asked, name)}"
        for asked, found in pairs
        for name in asdict(asked)
        if getattr(asked, name) != getattr(found, name)
    ]
    if other:
        raise UserError(
            f"model: {config.model} is no {config.shape}, which shape asks for: it has "
            f"{', '.join(other)}; give the right files, or shape=null"
        )


def _identify(config: GenerateConfig) -> tuple[str | None, ModelConfig]:
    """Digest of the model directory, or None for official files, and the model's shapes."""
    from infinity.checkpoint import check_listed, digest, load_model_config, open_official

    path = Path(config.model)
    if config.tokenizer is not None:
        missing = [
            f"{name}: {file} does not exist"
            for name, file in (("model", path), ("tokenizer", Path(config.tokenizer)))
            if not file.exists()
        ]
        if missing:
            raise Mistakes(missing)
        return None, open_official(path, Path(config.tokenizer)).config
    if not path.is_dir():
        raise UserError(
            f"model: {path} is not a folder; give a model directory, or an official transformer "
            "with its tokenizer=FILE"
        )
    model = load_model_config(path)
    check_listed(path)
    return digest(path), model


def _check_text_encoder(config: GenerateConfig, model: ModelConfig | None) -> None:
    """Makes sure that there is one, as far as its folder alone tells."""
    from infinity.loading import has_text_encoder, no_text_encoder

    if config.text_encoder is not None:
        folder = Path(config.text_encoder)
        if not (folder / "config.json").is_file():
            what = "has no config.json" if folder.is_dir() else "is not a folder"
            raise UserError(f"text_encoder: {folder} {what}; give the text encoder's own folder")
    elif model is not None and not has_text_encoder(Path(config.model)):
        raise UserError(no_text_encoder(Path(config.model), model))
