"""Settings for all tests."""

import os
import signal

# A shell's `pytest &` starts with Ctrl-C ignored, and every process that a test starts and interrupts would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# As under a service manager: DVC then uses /bin/sh, which may stay between it and a stage that has no `exec`.
os.environ.pop("SHELL", None)

# `make test` sets variables of make, and a make below it would print more.
for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
    os.environ.pop(name, None)

pytest_plugins = ("tests.fixtures", "tests.fixtures.project")
