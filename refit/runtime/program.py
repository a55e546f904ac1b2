"""The start and the end of a program of ours: a stage, or a command that `make` runs."""

import gc
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

_OURS = ("refit.", "stages.")


def start_program() -> None:
    """If this process is a program of ours that starts, turn garbage collection off until run_program: torch and
    Lightning are then imported in half the time."""
    if sys.argv[0] == "-m" and sys.orig_argv[sys.orig_argv.index("-m") + 1].startswith(_OURS):
        gc.disable()


def run_program(main: Callable[[], object]) -> None:
    """Run `main` with garbage collection; after start_program, end this process as well."""
    if gc.isenabled():
        main()
        return
    gc.freeze()  # collections then skip what the imports made
    gc.enable()
    run_and_exit(main)


def run_and_exit(main: Callable[[], object]) -> NoReturn:
    """Run `main` and end the process as the interpreter does, but skip its shutdown, which takes a second or two."""
    code: Any = 1
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:  # noqa: BLE001, as the interpreter does
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
