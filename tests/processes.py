"""Waiting for processes, and asking whether they live."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

PATIENCE = 240.0
"""Seconds that a test waits for what takes a few: a machine may be busy with other things, to a tenth of its speed."""


def eventually(condition: Callable[[], Any], what: str, seconds: float = PATIENCE, every: float = 0.1) -> Any:
    """The first true value of `condition`, asked `every` so many seconds; fails, naming `what`, after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds:g} s: {what}")
        time.sleep(every)
    return value


def answers(url: str) -> bool:
    """Whether something answers there."""
    try:
        return httpx.get(url).is_success
    except httpx.TransportError:
        return False


def alive(pid: int | str) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def processes_in(folder: Path) -> list[str]:
    """The command lines of those that work in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink() == folder:
                found.append((process / "cmdline").read_text())
        except OSError:  # it has ended, or is another user's
            continue
    return found
