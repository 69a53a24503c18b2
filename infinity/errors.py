"""The one exception type that means: the input is wrong, and this sentence says how."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class UserError(Exception):
    """A mistake in what the user gave; the message is one sentence naming file, field, value and
    what is allowed.

    The command line prints the message alone and exits with code 2. Anything else that escapes is
    our bug (code 1).
    """

    @property
    def sentences(self) -> tuple[str, ...]:
        """The mistakes, one sentence each."""
        return (str(self),)


class Mistakes(UserError):
    """Several mistakes found together; the message has each on a line of its own.

    Args:
        sentences: at least one; what is told twice counts once.
    """

    def __init__(self, sentences: Sequence[str]) -> None:
        self._sentences = tuple(dict.fromkeys(sentences))
        text = self._sentences[0]
        if len(self._sentences) > 1:
            text = "\n  ".join([f"{len(self._sentences)} mistakes:", *self._sentences])
        super().__init__(text)

    @property
    def sentences(self) -> tuple[str, ...]:
        return self._sentences


@contextmanager
def named(place: str) -> Iterator[None]:
    """Puts the place of a user's mistakes before each of their sentences.

    Args:
        place: e.g. ``arm 'dense'``.

    Raises:
        Mistakes: those raised inside, with their place.
    """
    try:
        yield
    except UserError as error:
        raise Mistakes([f"{place}: {sentence}" for sentence in error.sentences]) from error


@contextmanager
def collecting(found: list[str]) -> Iterator[None]:
    """Notes a user's mistakes instead of stopping at them.

    Args:
        found: takes their sentences.
    """
    try:
        yield
    except UserError as error:
        found += error.sentences
