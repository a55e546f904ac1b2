"""How a command for people runs: its arguments, its errors and its exit code."""

import os
import sys
from argparse import ArgumentParser
from collections.abc import Callable

from refit.runtime.errors import UserError, print_error
from refit.runtime.program import run_program


def command_parser() -> ArgumentParser:
    """A parser without arguments yet, which answers `--help` with the docstring of the module that runs."""
    running = sys.modules["__main__"]
    name = f"python -m {running.__spec__.name}" if running.__spec__ else None  # a module may be run as a file too
    return ArgumentParser(prog=name, description=running.__doc__)


def run_command(main: Callable[..., object], parser: ArgumentParser | None = None) -> None:
    """Run `main` as this process, with the arguments of `parser` under their names; without one, it takes none.

    Exit codes: 0 done; 2 a wrong argument, or a UserError, which is printed without a traceback; 1 the reader of the
    output closed it.
    """
    run_program(lambda: _run(main, parser or command_parser()))


def _run(main: Callable[..., object], parser: ArgumentParser) -> None:
    arguments = vars(parser.parse_args())
    try:
        main(**arguments)
        sys.stdout.flush()
    except UserError as error:
        print_error(error)
        sys.exit(2)
    except BrokenPipeError:  # as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would flush into it at its end
        sys.exit(1)
