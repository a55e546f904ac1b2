"""Run a recipe of docs/recipes on your photos, as an experiment of DVC: `make photos DATA=FOLDER [WEIGHTS=FILE]`.

The folder has one folder per class, or train, val and test with these; it may also be in an archive, or a table may
name the images. The command that runs is printed first. It sets
the keys that differ between params.yaml and the recipe; the others stay as they are.
"""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from refit.data.sources.archive import ARCHIVES
from refit.data.sources.tables import TABLES
from refit.params import load_params
from refit.params.dotted import as_in_yaml, flatten
from refit.runtime.command import command_parser, run_command
from refit.runtime.errors import UserError

RECIPES = Path("docs/recipes")
_NOT_OF_A_RECIPE = ("tracking.", "pipelines.")  # they change no result


def main(name: str, data: str, weights: str | None) -> None:
    """Replaces this process by `dvc exp run`. Raises UserError if there is no such recipe, or `data` is not there."""
    file = RECIPES / f"{name}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
        raise UserError(f"{file} does not exist; the recipes are {known}")
    if not data:
        raise UserError(f"DATA is missing: the folder of your images, as in: make {name} DATA=data/raw/photos")
    # As it is written: load_params would have resolved trainer.threads = auto.
    wanted = flatten(yaml.safe_load(file.read_text(encoding="utf-8")))
    wanted = {key: value for key, value in wanted.items() if not key.startswith(_NOT_OF_A_RECIPE)}
    wanted |= {"data.source": source_of(data), "data.root": data.rstrip("/")}
    if weights:
        wanted["model.weights"] = weights
    command = command_for(wanted, flatten(load_params().model_dump()))
    print(shlex.join(command), flush=True)
    os.execvp(command[0], command)


def source_of(data: str) -> str:
    """The value of data.source for the images in `data`. Raises UserError unless it is a folder, an archive or a
    table."""
    if Path(data).is_dir():
        return "folder"
    if Path(data).is_file() and data.lower().endswith(ARCHIVES):
        return "archive"
    if Path(data).is_file() and data.lower().endswith(TABLES):
        return "manifest"
    raise UserError(f"DATA = {data!r} is not a folder, an archive or a table; put your images into one folder per "
                    "class below it, or see docs/own_images.md")  # fmt: skip


def command_for(wanted: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """The `dvc exp run` that changes the `current` values, by dotted key, to the `wanted` ones."""
    changes = [f"{key}={as_in_yaml(value)}" for key, value in wanted.items() if current.get(key) != value]
    return ["dvc", "exp", "run", *(part for change in changes for part in ("-S", change))]


if __name__ == "__main__":
    parser = command_parser()
    parser.add_argument("name", help="the recipe: the name of a file in docs/recipes, without .yaml")
    parser.add_argument("data", help="the folder of the images, an archive or a table")
    parser.add_argument("weights", nargs="?", help="a file below data/weights, in place of the weights of the recipe")
    run_command(main, parser)
