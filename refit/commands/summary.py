"""Print a summary of the last run: `make summary`."""

from refit.reports.summary import as_text, read_facts
from refit.runtime.command import run_command


def main() -> None:
    print(as_text(read_facts()))


if __name__ == "__main__":
    run_command(main)
