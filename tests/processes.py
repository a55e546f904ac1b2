"""Wait for processes, and check whether they run."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

PATIENCE = 240.0
"""Seconds to wait for what normally takes a few: a busy machine may have a tenth of its speed."""


def eventually(condition: Callable[[], Any], what: str, seconds: float = PATIENCE, every: float = 0.1) -> Any:
    """The first true value of `condition`, called every `every` seconds; after `seconds` it fails and names `what`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds:g} s: {what}")
        time.sleep(every)
    return value


def answers(url: str) -> bool:
    """Whether a server answers at this URL."""
    try:
        return httpx.get(url).is_success
    except httpx.TransportError:
        return False


def alive(pid: int | str) -> bool:
    """Whether a process runs. A zombie, which has ended but was not waited for, does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def processes_in(folder: Path) -> list[str]:
    """The command lines of the processes whose working directory is this folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink() == folder:
                found.append((process / "cmdline").read_text())
        except OSError:  # the process has ended, or belongs to another user
            continue
    return found
