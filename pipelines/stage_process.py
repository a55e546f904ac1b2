"""Runs a stage or another command as a process group, passes on its output line by line, and leaves no process behind.

It does not know Prefect: when `run_stage` is cancelled (by a time limit, a flow, Ctrl-C), the whole group is ended.
"""

import asyncio
import codecs
import os
import re
import signal
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path

from anyio import CancelScope

from refit.runtime import parent
from refit.runtime.environment import QUIET
from refit.runtime.warm import OWNER

USER_ERROR = 2  # the exit code of a stage that raised a UserError
GRACE = 10.0  # seconds between asking a stage to end and killing it

# The hints that DVC prints after each stage, and blank lines.
_HINTS = re.compile(r"$|To (track|enable)\b.*, run:$|\t(git add|dvc config core\.autostage) |Use `dvc push` to send ")
_CHUNK = 1 << 16  # bytes
_LAST_LINES = 50


class CommandFailedError(Exception):
    """A command failed: its name, its exit code (DVC's own if the stage never ran), and its error."""

    def __init__(self, what: str, exit_code: int, reason: str) -> None:
        super().__init__(f"{what} failed: {reason} (exit code {exit_code})")
        self.exit_code = exit_code


async def run_stage(stage: str, on_line: Callable[[str], None]) -> None:
    """Bring one stage of dvc.yaml up to date, whose upstream stages are; `on_line` gets each line it prints, except
    DVC's hints.

    Raises CommandFailedError with the stage's own error. When cancelled, returns after the last process has ended.
    """
    # A stage that runs at the same time holds DVC's lock while it writes its outputs to the cache.
    command = ["dvc", "--wait-for-lock", "repro", "--single-item", stage]
    exit_code, last_lines = await _run(command, lambda line: None if _HINTS.match(line) else on_line(line))
    if exit_code != 0:
        raise CommandFailedError(f"stage {stage!r}", *_explain(last_lines, exit_code))


async def run_command(what: str, command: Sequence[str], on_line: Callable[[str], None]) -> None:
    """Do the same for a command that is not a stage."""
    exit_code, last_lines = await _run(command, on_line)
    if exit_code != 0:
        lines = [line for line in last_lines if line.strip()]
        of_git_or_dvc = [line.partition(": ")[2] for line in lines if line.startswith(("fatal: ", "ERROR: "))]
        raise CommandFailedError(what, exit_code, "; ".join(_errors(lines) or of_git_or_dvc) or _last(lines))


async def _run(command: Sequence[str], on_line: Callable[[str], None]) -> tuple[int, list[str]]:
    """The exit code of a process, and its last lines."""
    last_lines: deque[str] = deque(maxlen=_LAST_LINES)

    def remember(line: str) -> None:
        last_lines.append(line)
        on_line(line)

    return await run_process(command, remember), list(last_lines)


async def run_process(command: Sequence[str], on_line: Callable[[str], None]) -> int:
    """Run a command in its own session and process group; `on_line` gets each line of stdout and stderr, in order.

    Returns its exit code, negative if a signal ended it. When it ends, or this is cancelled, the rest of its group is
    ended too: by SIGINT, and by SIGKILL after GRACE seconds.
    """
    lines = _Lines(on_line)
    # Not asyncio's pipes: its Process.wait waits for their end, and a stray child may hold them open.
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb", buffering=0) as ours, os.fdopen(write_end, "wb", buffering=0) as theirs:
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: lines, ours)
        with closing(transport):
            process = await asyncio.create_subprocess_exec(
                # Not a preexec_fn: in a process with threads, Python between fork and exec can deadlock.
                *[sys.executable, "-I", "-S", parent.__file__, str(os.getpid()), *command],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=theirs,
                stderr=theirs,
                env=_environment(),
                start_new_session=True,
            )
            theirs.close()
            try:
                return await process.wait()
            finally:
                with CancelScope(shield=True):  # else a retry would meet the dying processes of this try
                    await _end_group(process)
                    with suppress(TimeoutError):  # a process that left the group keeps the pipe open
                        await asyncio.wait_for(lines.ended, GRACE)


class _Lines(asyncio.Protocol):
    """Splits the content of a pipe into lines. It is not a task: a loop that cancels all tasks must still empty the
    pipe, or a stage that saves its state would die of the broken pipe."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self.ended = asyncio.get_running_loop().create_future()
        self._on_line = on_line
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + self._decoder.decode(data)).split("\n")
        for line in lines:
            self._on_line(_as_shown(line))
        if len(self._rest) > _CHUNK:  # a progress bar that redraws itself for hours is one endless line
            self._on_line(_as_shown(self._rest))
            self._rest = ""

    def connection_lost(self, exc: Exception | None) -> None:
        if self._rest:
            self._on_line(_as_shown(self._rest))
        if not self.ended.done():
            self.ended.set_result(None)


def _as_shown(line: str) -> str:
    """What a terminal shows of a line with carriage returns."""
    return line.rstrip("\r").rsplit("\r", 1)[-1]


async def _end_group(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):  # it has just ended
            os.killpg(process.pid, signal.SIGINT)
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), GRACE)
    with suppress(ProcessLookupError):  # the group is empty
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def _environment() -> dict[str, str]:
    """This process's environment, with this Python's `dvc` and `python` first, and one warm process for all stages."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**QUIET, **os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", OWNER: str(os.getpid())}


def _explain(lines: list[str], dvc_exit_code: int) -> tuple[int, str]:
    """The stage's own exit code and error, from the last lines of the stage and of DVC.

    DVC exits with 255 whatever the stage's exit code, and names that in its last line.
    """
    of_dvc = [number for number, line in enumerate(lines) if line.startswith("ERROR: failed to reproduce ")]
    if not of_dvc:
        return dvc_exit_code, _last([line for line in lines if line.strip()])
    verdict = lines[of_dvc[-1]]
    exited = re.search(r"exited with (-?\d+)$", verdict)
    if exited is None:  # DVC did not run the stage, or could not save its outputs
        return dvc_exit_code, verdict.removeprefix("ERROR: ")
    said = [line for line in lines[: of_dvc[-1]] if line.strip() and not line.startswith(("> ", "Running stage "))]
    return int(exited[1]), "; ".join(_errors(said)) or _last(said)


def _errors(said: list[str]) -> list[str]:
    """The lines of a stage's UserError, or else the last line of its traceback."""
    if ours := [line.removeprefix("error: ") for line in said if line.startswith("error: ")]:
        return ours
    if "Traceback (most recent call last):" not in said:
        return []
    after = len(said) - said[::-1].index("Traceback (most recent call last):")
    return [line for line in said[after:] if not line.startswith(" ")][:1]


def _last(lines: list[str]) -> str:
    return lines[-1] if lines else "it printed nothing"
