"""A lock that only one process can hold at a time."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from refit.runtime.errors import UserError
from refit.runtime.locks import FOREVER, only_process

PROJECT = Path(__file__).resolve().parents[3]
HOLD = """
import sys
from pathlib import Path
from refit.runtime.locks import only_process

with only_process(Path(sys.argv[1]), "works here", float(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process(lock: Path, patience: float = 0) -> Iterator["subprocess.Popen[str]"]:
    """A process that takes the lock, prints `held`, and holds it until its stdin is closed."""
    command = [sys.executable, "-c", HOLD, str(lock), str(patience)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env={"PYTHONPATH": str(PROJECT)}, text=True, **pipes) as process:  # type: ignore[call-overload]
        yield process


def is_held(process: "subprocess.Popen[str]") -> bool:
    assert process.stdout is not None
    return process.stdout.readline() == "held\n"


def test_a_second_process_gets_an_error_that_names_the_holder(tmp_path: Path) -> None:
    lock = tmp_path / "new/folder/lock"
    with another_process(lock) as holder:
        assert is_held(holder)
        expected = f"process {holder.pid} works here; wait for it, or end it: kill {holder.pid}"
        with pytest.raises(UserError) as refused, only_process(lock, "works here", 0.2):
            pass
        assert str(refused.value) == expected
    assert not lock.exists()
    with only_process(lock, "works here"):
        assert lock.read_text() == str(os.getpid())


def test_a_killed_process_holds_no_lock(tmp_path: Path) -> None:
    with another_process(tmp_path / "lock") as holder:
        assert is_held(holder)
        holder.kill()
        holder.wait()
        assert (tmp_path / "lock").exists()
        with only_process(tmp_path / "lock", "works here"):
            assert (tmp_path / "lock").read_text() == str(os.getpid())


def test_a_waiting_process_gets_the_lock_when_the_holder_ends(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with ExitStack() as waits:
        with only_process(lock, "works here"):
            waiting = waits.enter_context(another_process(lock, FOREVER))
            with pytest.raises(subprocess.TimeoutExpired):
                waiting.wait(timeout=1)
            assert lock.read_text() == str(os.getpid())
        assert is_held(waiting)
        assert lock.read_text() == str(waiting.pid)
        waiting.communicate("")
    assert not lock.exists()


def test_two_waiting_processes_get_the_lock_one_after_the_other(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with another_process(lock, FOREVER) as first, another_process(lock, FOREVER) as second:
        assert first.stdin is not None
        assert second.stdin is not None
        held_by: dict[int, subprocess.Popen[str]] = {}
        while not held_by:
            held_by = {p.pid: p for p in (first, second) if lock.exists() and lock.read_text() == str(p.pid)}
        (holder,) = held_by.values()
        other = second if holder is first else first
        assert is_held(holder)
        holder.communicate("")
        assert is_held(other)
        assert lock.read_text() == str(other.pid)
        other.communicate("")
    assert not lock.exists()


def test_a_lock_that_cannot_be_opened_gives_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/lock cannot be opened: "), only_process(tmp_path / "file/lock", "works"):
        pass
