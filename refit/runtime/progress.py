"""Progress of long work: a bar in a terminal, a line now and then in a log."""

import sys
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

from rich.progress import track

T = TypeVar("T")
_FIRST_LINE = 5.0  # seconds
_PAUSE = 0.1  # of the time so far until the next line, so that the log of long work stays short


class Lines:
    """Prints how much of long work is done, for output that is not a terminal. Short work prints nothing."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total = what, total
        self._began = time.monotonic()
        self._next = self._began + _FIRST_LINE

    def show(self, done: int) -> None:
        """Print a line if the last one was some time ago."""
        now = time.monotonic()
        if now < self._next or not done:
            return
        self._next = now + max(_FIRST_LINE, _PAUSE * (now - self._began))
        left = (now - self._began) * (self.total - done) / done
        print(f"{self.what}: {done:,} of {self.total:,}, {duration(left)} left", flush=True)


def progress(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """Yield `items`, showing how many of `total` are done."""
    if sys.stdout.isatty():
        yield from track(items, what, total)
        return
    lines = Lines(what, total)
    for done, item in enumerate(items, start=1):
        yield item
        lines.show(done)


def duration(seconds: float) -> str:
    """Such as 0.3 s, 42 s, 12 min or 3:20 h."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{str(timedelta(minutes=round(seconds / 60)))[:-3]} h"
