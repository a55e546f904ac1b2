"""Settings for all tests."""

import gc
import os
import re
import signal
import sys

gc.disable()  # until the tests are collected: garbage collection would double the time of the imports

# A shell's `pytest &` starts with Ctrl-C ignored, and every process that a test starts and interrupts would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# As under a service manager: DVC then uses /bin/sh, which may stay between it and a stage that has no `exec`.
os.environ.pop("SHELL", None)

# `make test` sets variables of make, and a make below it would print more.
for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
    os.environ.pop(name, None)

# The process that only hands the tests to workers does without the fixtures' imports, so that these start at once.
HANDS_OUT = re.search(r" -n(?! ?0\b)", " ".join(["", *sys.argv[1:]])) and "PYTEST_XDIST_WORKER" not in os.environ
if not HANDS_OUT:
    pytest_plugins = ("tests.fixtures", "tests.fixtures.project", "tests.fixtures.s3")


def pytest_collection_finish() -> None:
    gc.freeze()  # later collections then skip what the imports made
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # or nanobind, in torch's triton, would report leaks at the end of the process


def pytest_xdist_auto_num_workers() -> int:
    """For `-n auto`: three workers for two cores, because tests often wait for a process or a server. More would only
    collect the tests once more each. A worker needs up to 3 GB of memory, with the processes that it starts."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min((os.cpu_count() or 1) * 3 // 2, int(memory / 3e9)))
