"""Run a recipe of docs/recipes on your photos, as an experiment of DVC: `make photos DATA=FOLDER [WEIGHTS=FILE]`.

The folder has one folder per class, or train, val and test with these. The command that runs is printed first. It sets
the keys that differ between params.yaml and the recipe; the others stay as they are.
"""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from refit.params import load_params
from refit.params.dotted import as_in_yaml, flatten
from refit.runtime.command import command_parser, run_command
from refit.runtime.errors import UserError

RECIPES = Path("docs/recipes")


def main(name: str, data: str, weights: str | None) -> None:
    """Replaces this process by `dvc exp run`. Raises UserError if there is no such recipe, or `data` is no folder."""
    file = RECIPES / f"{name}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
        raise UserError(f"{file} does not exist; the recipes are {known}")
    if not data:
        raise UserError(f"DATA is missing: the folder of your images, as in: make {name} DATA=data/raw/photos")
    if not Path(data).is_dir():
        raise UserError(f"DATA = {data!r} is not a folder; put your images into one folder per class below it")
    # As it is written: load_params would have resolved trainer.threads = auto.
    wanted = flatten(yaml.safe_load(file.read_text(encoding="utf-8"))) | {"data.root": data.rstrip("/")}
    if weights:
        wanted["model.weights"] = weights
    command = command_for(wanted, flatten(load_params().model_dump()))
    print(shlex.join(command), flush=True)
    os.execvp(command[0], command)


def command_for(wanted: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """The `dvc exp run` that changes the `current` values, by dotted key, to the `wanted` ones."""
    changes = [f"{key}={as_in_yaml(value)}" for key, value in wanted.items() if current.get(key) != value]
    return ["dvc", "exp", "run", *(part for change in changes for part in ("-S", change))]


if __name__ == "__main__":
    parser = command_parser()
    parser.add_argument("name", help="the recipe: the name of a file in docs/recipes, without .yaml")
    parser.add_argument("data", help="the folder of the images")
    parser.add_argument("weights", nargs="?", help="a file below data/weights, in place of the weights of the recipe")
    run_command(main, parser)
