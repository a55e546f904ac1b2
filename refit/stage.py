"""What every stage's process does around its story: checked parameters, clear errors, honest exit codes."""

import ctypes
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from refit.params import Params, load_params

_PROJECT = Path(__file__).resolve().parents[1]
_PR_SET_PDEATHSIG = 1


def run_stage(main: Callable[[Params], None], *, reads: tuple[str, ...]) -> None:
    """Run a stage as this process: `main` is given the sections of params.yaml named in `reads`, and no other.

    Exit codes: 0 done; 2 the user's mistake, told in one line; 143 ended by SIGTERM; 130 by Ctrl-C.
    """
    _die_with_parent()
    try:
        main(load_params().only(*reads))
    except ValueError as error:
        if not _is_ours(error):
            raise
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except SystemExit as error:
        # Lightning answers SIGTERM with a SystemExit that has no code: DVC would take a half-trained model for a whole.
        sys.exit(error.code or 128 + signal.SIGTERM)


def _is_ours(error: ValueError) -> bool:
    """Whether this project raised it on purpose, and not a library: those are faults, and keep their traceback."""
    raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
    return raised_in.parent.is_relative_to(_PROJECT / "refit") or raised_in.parent == _PROJECT / "stages"


def _die_with_parent() -> None:
    """A killed `dvc` must not leave a trainer behind that writes beside its successor (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
