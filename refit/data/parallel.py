"""Work on many images at once, on all cores."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from typing import Any, TypeVar

from refit.runtime.parent import die_with_parent

Result = TypeVar("Result")
_work: Callable[[int], Any]


def in_parallel(work: Callable[[int], Result], count: int, together: int = 32) -> Iterator[Result]:
    """work(0) to work(count - 1), in order. The results are sent between processes, so they should be small. A process
    is handed `together` calls at a time.

    On Linux the calls run in forked processes, which share memory maps with this one: threads would wait for each
    other, because opening a small file is mostly Python's own work. Elsewhere they run in threads.
    """
    with _executor(work) as executor:
        yield from executor.map(_call, range(count), chunksize=together)


def _executor(work: Callable[[int], Any]) -> Executor:
    if sys.platform != "linux":
        return ThreadPoolExecutor(os.cpu_count(), initializer=_start, initargs=(work,))
    return ProcessPoolExecutor(os.cpu_count(), get_context("fork"), _start_process, (work,))


def _start_process(work: Callable[[int], Any]) -> None:
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all; the process that waits ends the work
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _start(work)


def _start(work: Callable[[int], Any]) -> None:
    global _work  # a forked process inherits it, and is only sent numbers
    _work = work


def _call(number: int) -> Any:
    return _work(number)
