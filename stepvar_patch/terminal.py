"""What every verb of the command line shares: where it talks, and how Ctrl-C leaves it."""

import functools
import json
import logging
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any, cast

import typer
from rich.console import Console

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Values that replace those of the config."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

talk = Console(stderr=True, soft_wrap=True)

Misused: Any = typer.BadParameter.__base__
"""What Typer raises when words do not fit a verb; where it keeps the class depends on its version.
"""


def load_pipeline_of(context: typer.Context) -> Callable[..., Any]:
    """Reads a model directory: the real pipeline's loader, or what a test gave in its place."""
    if context.obj is not None:
        return cast(Callable[..., Any], context.obj)
    from infinity.pipeline import InfinityPipeline

    return InfinityPipeline.from_pretrained


class Interrupted(Exception):
    """Ctrl-C inside a verb, under a name that Typer does not turn into an abort."""


def verb(
    app: typer.Typer, name: str | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator that registers a verb.

    Args:
        app: the command or group that the verb belongs to.
        name: of the verb; None takes its function's.

    Returns:
        The decorator; Ctrl-C in the verb raises `Interrupted`.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> None:
            try:
                function(*args, **kwargs)
            except KeyboardInterrupt as error:
                raise Interrupted from error

        return app.command(name)(run)

    return register


def say(result: object, text: str, as_json: bool) -> None:
    """Prints a verb's result on stdout, as JSON or as text."""
    sys.stdout.write((json.dumps(result, ensure_ascii=False) if as_json else text) + "\n")


class TalkHandler(logging.Handler):
    """Sends records to stderr, above a progress bar, on one line each; a warning only once."""

    def __init__(self) -> None:
        super().__init__()
        self._warned: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = printable(record.getMessage())
        if record.levelno >= logging.WARNING:
            if text in self._warned:
                return
            self._warned.add(text)
            text = f"{record.levelname.lower()}: {text}"
        talk.print(text, markup=False, highlight=False)


def printable(text: str) -> str:
    """The text without what could steer a terminal; names of files may hold such characters."""
    return "".join(c if c == "\n" or c.isprintable() else repr(c)[1:-1] for c in text)


def how_misused(error: Any) -> str:
    """One line about a `Misused`; nothing when help was wanted, which Typer has given by then."""
    if type(error).__name__ == "NoArgsIsHelpError":
        return ""
    verb = error.ctx.command_path if error.ctx else "stepvar"
    sentence = printable(" ".join(error.format_message().split())).rstrip(".")
    return f"stepvar: {speaker()}{sentence}; see '{verb} --help'\n"


def speaker() -> str:
    """Names the process in its messages, when it is not the first of its launch."""
    rank = os.environ.get("RANK", "0")
    return f"rank {rank}: " if rank.isdecimal() and int(rank) else ""


def configure_logging(level: int = logging.WARNING) -> None:
    """Sends the library's log to stderr."""
    if not logging.getLogger().handlers:
        logging.basicConfig(handlers=[TalkHandler()])
    for name in ("infinity", "stepvar_patch"):
        logging.getLogger(name).setLevel(level)
