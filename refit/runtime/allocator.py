"""How this process gets memory from the system (glibc only; elsewhere nothing is changed)."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_MOST = 2**31 - 1  # bytes, nearly 2 GiB: the largest value that mallopt takes


def keep_freed_memory() -> None:
    """Reuse the memory of freed tensors in place of giving it back to the system.

    By default glibc returns each block above 32 MiB when it is freed. The next tensor of that size then costs a page
    fault for every 4 KiB, which took up to half of the time of a network on photos (docs/performance.md).
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(_M_MMAP_THRESHOLD, _MOST)
        mallopt(_M_TRIM_THRESHOLD, _MOST)
