"""How a stage runs: its errors, its signals and its exit code."""

import errno
import signal
import sys
from collections.abc import Callable

from refit.runtime.errors import UserError, print_error
from refit.runtime.program import run_program

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)  # full, or not writable


def run_stage(main: Callable[[], None]) -> None:
    """Run a stage as this process.

    Exit codes: 0 done; 2 a UserError, printed without a traceback; 143 ended by SIGTERM; 130 by Ctrl-C.
    """
    run_program(lambda: _run(main))


def _run(main: Callable[[], None]) -> None:
    interrupted = False

    def interrupt(*_: object) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)  # even if a shell's `cmd &` ignores it
    # Lightning ends a fit with exit code 0 on SIGTERM, and ignores it in a test: DVC would keep a partial result.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        main()
    except UserError as error:
        print_error(error)
        sys.exit(2)
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror}; fix that and run it again", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        operation, refused, _ = str(error).partition(" does not have a deterministic implementation")
        if not refused:
            raise
        print(
            f"error: trainer.deterministic = true, and the network's {operation} is not deterministic on this device; "
            "set trainer.deterministic to false, or choose another model.network",
            file=sys.stderr,
        )
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit):
        if not interrupted:
            raise
        # Lightning would exit with 1, as after an error.
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
