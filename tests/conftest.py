"""What holds for every test."""

import signal

# A shell's `pytest &` starts with Ctrl-C ignored, and so would every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
