"""What a command for people does around its story: a mistake is a line, and exit code 2."""

import os
import sys
from argparse import ArgumentParser
from collections.abc import Callable

from refit.runtime.errors import UserError, print_error


def run_command(main: Callable[[list[str]], None]) -> None:
    """Run a command as this process, with the arguments it was given."""
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
    except UserError as error:
        print_error(error)
        sys.exit(2)
    except BrokenPipeError:  # whoever read the output has seen enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python would try again at its end
        sys.exit(1)


def take_no_arguments() -> None:
    """Answer `--help` with the docstring of the module that runs, and refuse any other argument."""
    running = sys.modules["__main__"]
    name = f"python -m {running.__spec__.name}" if running.__spec__ else None  # it may be run as a file too
    ArgumentParser(prog=name, description=running.__doc__).parse_args()
