"""Freed memory is kept for the next tensors."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FAULTS = """
import resource, sys
from refit.runtime.allocator import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
counts = []
for _ in range(20):
    block = b"x" * 2**26
    del block
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(counts[-1] - counts[0])
"""


def page_faults(how: str) -> int:
    """Page faults of all blocks of 64 MiB but the first."""
    command = [sys.executable, "-c", FAULTS, how]
    return int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_a_block_of_freed_memory_is_used_again_without_page_faults() -> None:
    assert page_faults("keep") < page_faults("default") / 100
