"""What every stage's process does around its story: checked parameters, clear errors, honest exit codes."""

import errno
import signal
import sys
from collections.abc import Callable

from refit.runtime.errors import UserError, print_error

_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)  # full, or not ours to write to


def run_stage(main: Callable[[], None]) -> None:
    """Run a stage as this process.

    Exit codes: 0 done; 2 the user's mistake, told in one line; 143 ended by SIGTERM; 130 by Ctrl-C.
    """
    interrupted = False

    def interrupt(*_: object) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)  # also where a shell's `cmd &` has it ignored
    # Lightning answers SIGTERM with exit code 0 in a fit, and not at all in a test: DVC would take a part for all.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        main()
    except UserError as error:
        print_error(error)
        sys.exit(2)
    except OSError as error:
        if error.errno not in _OF_THE_DISK:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror}; mend that and run it again", file=sys.stderr)
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
        # Lightning makes an exit code 1 of it, as of a fault.
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
