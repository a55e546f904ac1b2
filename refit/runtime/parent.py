"""What a process does when the one that started it ends (Linux only; elsewhere it goes on).

Run as a file, `python -I -S parent.py PARENT_PID COMMAND...`, it becomes a command that ends with its parent.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

_PR_SET_PDEATHSIG, _PR_GET_PDEATHSIG = 1, 2
PARENT_ENDED = signal.SIGUSR2  # a signal that nothing else sends or ignores, as `nohup` ignores SIGHUP


def die_with_parent() -> None:
    """Have this stage killed when its `dvc` ends: it must not go on writing beside the next run."""
    if sys.platform == "linux":
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if "DVC_STAGE" in os.environ and _is_orphan(os.getppid()):
            sys.exit("error: the dvc that started this stage was killed")


def survive_parent(survive: bool) -> None:
    """Have this process sent PARENT_ENDED when its parent ends, instead of being killed; or killed again.

    Does nothing in a process that `die_with_parent` did not prepare.
    """
    before, now = (signal.SIGKILL, PARENT_ENDED) if survive else (PARENT_ENDED, signal.SIGKILL)
    if sys.platform == "linux":
        number = ctypes.c_int()
        _prctl(_PR_GET_PDEATHSIG, ctypes.byref(number))
        if number.value == before:
            _prctl(_PR_SET_PDEATHSIG, now)


def become_command(parent: int, command: list[str]) -> NoReturn:
    """Replace this process by `command`: Ctrl-C reaches it even if `parent` ignores that (a shell's `cmd &`), and it is
    sent SIGTERM when `parent` ends."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == "linux":
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            sys.exit("error: the process that started this command has ended")
    os.execvp(command[0], command)


def _prctl(option: int, value: Any) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value)


def _is_orphan(parent: int) -> bool:
    """Whether `parent` is the process that adopts orphans: the user's systemd; or process 1, unless that is `dvc`
    itself, as in a container."""
    try:
        arguments = Path(f"/proc/{parent}/cmdline").read_bytes().split(b"\0")[:2]
    except FileNotFoundError:  # it ended at this moment
        return True
    names = [Path(os.fsdecode(argument)).name for argument in arguments]
    if parent == 1:
        return not any(known in name for name in names for known in ("dvc", "python"))
    return names[0] == "systemd"


if __name__ == "__main__":
    become_command(int(sys.argv[1]), sys.argv[2:])
