"""A lock that one process holds at a time. It ends with its process, however that ends."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from refit.runtime.errors import UserError

FOREVER = -1.0
"""The patience of a process that waits for the lock without limit."""


@contextmanager
def only_process(lock_file: Path, work: str, patience: float = 0) -> Iterator[None]:
    """Run the block while this process alone holds `lock_file`, which names its process and is removed at the end.

    `work` says what the holder does, as in `runs a flow here`. Raises UserError, which names the holder, if another
    process still holds the lock after `patience` seconds; and if the file cannot be opened.
    """
    # Not filelock's soft lock, where the file system has no other: a killed process would hold it for ever.
    lock = FileLock(lock_file, timeout=patience, fallback_to_soft=False)
    try:
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        holder = _read_holder(lock_file)
        raise UserError(f"process {holder} {work}; wait for it, or end it: kill {holder}") from None
    except OSError as error:
        raise UserError(f"{lock_file} cannot be opened: {error.strerror}") from None
    try:
        lock_file.write_text(str(os.getpid()), encoding="utf-8")
        yield
    finally:
        lock_file.unlink(missing_ok=True)  # still held: a process that waits for this file then opens a new one
        lock.release()


def _read_holder(lock_file: Path) -> str:
    try:
        return lock_file.read_text(encoding="utf-8") or "unknown"
    except FileNotFoundError:  # it ended at this moment
        return "unknown"
