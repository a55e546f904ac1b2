"""Progress of long work: a bar in a terminal, a line every few seconds in a log."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.progress import track

T = TypeVar("T")
_SECONDS_A_LINE = 5


def progress(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    """Yield `items`, showing how many of `total` are done."""
    if sys.stdout.isatty():
        yield from track(items, what, total)
        return
    printed = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - printed > _SECONDS_A_LINE:
            printed = time.monotonic()
            print(f"{what}: {done:,} of {total:,}", flush=True)
