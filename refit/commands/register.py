"""Register the current model as a version in MLflow's registry: `make register [NAME=refit]`."""

import sys

from refit.artifacts.model import model_name, model_sha256
from refit.artifacts.paths import MODEL
from refit.runtime.command import command_parser, run_command
from refit.tracking.registry import register, was_tested
from refit.tracking.store import EXPERIMENT


def main(name: str) -> None:
    sha256 = model_sha256(MODEL)
    model = model_name(sha256)
    if not was_tested(sha256):
        print(f"warning: model {model} has not been tested; to test it, run: dvc repro", file=sys.stderr)
    version, new = register(MODEL, name)
    print(f"model {model} {'is now' if new else 'was already'} {version.uri}")


if __name__ == "__main__":
    parser = command_parser()
    parser.add_argument("name", metavar="NAME", nargs="?", default=EXPERIMENT, help="the registered model's name")
    run_command(main, parser)
