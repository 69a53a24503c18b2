"""The one exception type that means: the input is wrong, and this sentence says how."""


class UserError(Exception):
    """A mistake in what the user gave; the message is one sentence naming file, field, value and
    what is allowed.

    The command line prints the message alone and exits with code 2. Anything else that escapes is
    our bug (code 1).
    """
