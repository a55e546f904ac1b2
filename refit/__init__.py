"""What the stages share."""

from refit.runtime.program import start_program

start_program()
