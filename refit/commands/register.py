"""Make the current model a version in MLflow's registry: `python -m refit.commands.register [NAME]`."""

import sys
from pathlib import Path

from refit.artifacts.model import model_name, model_sha256
from refit.runtime.command import run_command
from refit.runtime.errors import UserError
from refit.tracking.registry import register, was_tested
from refit.tracking.runs import EXPERIMENT

MODEL = Path("data/model")


def main(arguments: list[str]) -> None:
    if len(arguments) > 1 or any(argument.startswith("-") for argument in arguments):
        raise UserError("usage: python -m refit.commands.register [NAME]")
    name = arguments[0] if arguments else EXPERIMENT
    sha256 = model_sha256(MODEL)
    model = model_name(sha256)
    if not was_tested(sha256):
        print(
            f"warning: model {model} has not been tested; to know what it is worth: dvc repro",
            file=sys.stderr,
        )
    version, new = register(MODEL, name)
    print(f"model {model} {'is now' if new else 'was already'} {version.uri}")


if __name__ == "__main__":
    run_command(main)
