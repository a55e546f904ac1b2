"""What holds for every test."""

import os
import signal

# A shell's `pytest &` starts with Ctrl-C ignored, and so would every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# As a service manager starts things: DVC then takes /bin/sh, which may stay between it and a stage that has no `exec`.
os.environ.pop("SHELL", None)

# `make test` is a make, and one below it would say so.
for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
    os.environ.pop(name, None)

pytest_plugins = ("tests.fixtures", "tests.fixtures.project")
