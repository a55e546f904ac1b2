"""What becomes of a stage whose `dvc` ends before it (Linux only; elsewhere it goes on)."""

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG, _PR_GET_PDEATHSIG = 1, 2
PARENT_ENDED = signal.SIGUSR2  # not one that others send too: `nohup` has SIGHUP ignored


def die_with_parent() -> None:
    """A killed `dvc` must not leave a trainer behind that writes beside its successor (Linux only)."""
    if sys.platform == "linux":
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == 1 and "DVC_STAGE" in os.environ and not _may_run_stages(Path("/proc/1/cmdline")):
            sys.exit("error: the dvc that started this stage was killed")


def hear_of_parents_end(hear: bool) -> None:
    """Instead of dying with its parent, this process is sent PARENT_ENDED; or again dies, where it is not to `hear`."""
    before, now = (signal.SIGKILL, PARENT_ENDED) if hear else (PARENT_ENDED, signal.SIGKILL)
    if sys.platform == "linux":
        number = ctypes.c_int()
        _prctl(_PR_GET_PDEATHSIG, ctypes.byref(number))
        if number.value == before:  # else it was not to die either
            _prctl(_PR_SET_PDEATHSIG, now)


def _prctl(option: int, value: Any) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value)


def _may_run_stages(command_line: Path) -> bool:
    """Whether this is `dvc`, as a container's first process, and no init that was handed a dead one's children."""
    arguments = command_line.read_bytes().split(b"\0")[:2]
    return any(name in Path(os.fsdecode(argument)).name for argument in arguments for name in ("dvc", "python"))
