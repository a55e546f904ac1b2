"""The one exception for a user's mistake, and how it is printed."""

import sys


class UserError(ValueError):
    """A mistake of the user's, raised on purpose: the message names the file, key or value, what was expected, and how
    to fix it. Stages and commands print it without a traceback and exit with 2; any other exception is our fault."""


def print_error(error: UserError) -> None:
    """Print each line of the message to stderr, led by `error: `."""
    for line in str(error).splitlines():
        print(f"error: {line}", file=sys.stderr)
