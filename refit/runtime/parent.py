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
        if "DVC_STAGE" in os.environ and _is_orphan(os.getppid()):
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


def _is_orphan(parent: int) -> bool:
    """Whether `parent` is who is handed the children of the dead: process 1, unless it is itself `dvc`, as in a
    container; or the user's systemd."""
    try:
        arguments = Path(f"/proc/{parent}/cmdline").read_bytes().split(b"\0")[:2]
    except FileNotFoundError:  # it ended at this moment
        return True
    names = [Path(os.fsdecode(argument)).name for argument in arguments]
    if parent == 1:
        return not any(known in name for name in names for known in ("dvc", "python"))
    return names[0] == "systemd"
