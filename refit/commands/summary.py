"""Print a summary of the last run: `make summary`."""

from refit.reports.summary import as_text, read_facts, read_steps
from refit.runtime.command import run_command


def main() -> None:
    print(as_text(read_facts(), read_steps()))


if __name__ == "__main__":
    run_command(main)
