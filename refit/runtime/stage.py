"""What every stage's process does around its story: checked parameters, clear errors, honest exit codes."""

import errno
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from refit.params import Params, load_params

_PROJECT = Path(__file__).resolve().parents[2]
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)  # full, or not ours to write to


def run_stage(main: Callable[[Params], None], *, reads: tuple[str, ...]) -> None:
    """Run a stage as this process: `main` is given the sections of params.yaml named in `reads`, and no other.

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
        main(load_params().only(*reads))
    except ValueError as error:
        if not _is_ours(error):
            raise
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
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


def _is_ours(error: ValueError) -> bool:
    """Whether this project raised it on purpose: one that came out of a call is a fault, and keeps its traceback."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    folder = Path(last.filename).resolve().parent
    in_project = folder.is_relative_to(_PROJECT / "refit") or folder == _PROJECT / "stages"
    return in_project and (last.line or "").startswith("raise ")
