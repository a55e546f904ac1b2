"""Is every choice in params.yaml right, and are the raw images at hand? And has the code of any stage changed?

The other stages depend on what this one writes of their code, so none begins before it has passed. What it writes does
not depend on the values in params.yaml, except for a system or a network of the user's own: a right value makes no
stage stale by itself.
"""

import json
import os
import shutil
from importlib.util import find_spec
from pathlib import Path

from refit.artifacts.checked import write_checked
from refit.artifacts.files import write_bytes
from refit.data.sources import open_source
from refit.params import OUR_NETWORKS, OUR_SYSTEMS, WEIGHTS_FILES, Params, load_params
from refit.runtime.errors import UserError
from refit.runtime.stage import run_stage

SCHEMA = Path("docs/params.schema.json")
USERS_FOLDERS = (Path("data/raw"), Path("data/new"), WEIGHTS_FILES)  # two are defaults of data.root, predict.images


def main(params: Params) -> None:
    for folder in USERS_FOLDERS:
        folder.mkdir(parents=True, exist_ok=True)
    open_source(params.data)
    if not Path(params.predict.images).is_dir():
        raise UserError(f"predict.images = {params.predict.images!r} is not a folder; create it, or name another")
    ours = params.model.system in OUR_SYSTEMS and params.model.network in OUR_NETWORKS
    if not ours or params.model.system_arguments or params.model.weights:
        from refit.systems.build import check_model  # seconds of imports that ours do not need

        check_model(params.model)
    if params.trainer.compile and not any(map(shutil.which, [os.environ.get("CXX") or "g++", "clang++"])):
        raise UserError(
            f"trainer.compile = {params.trainer.compile!r} needs a C++ compiler, and there is no g++; install it, or "
            "set trainer.compile to null"
        )
    for name in params.tracking.loggers:  # each needs the package of its name; csv is Python's own
        if find_spec(name) is None:
            raise UserError(f"tracking.loggers names {name}, which is not installed; run: uv pip install {name}")
    changes = write_checked((params.model.system, params.model.network))
    write_bytes(SCHEMA, (json.dumps(Params.model_json_schema(), indent=2) + "\n").encode())
    print("params.yaml is right", *changes, sep="\n")


if __name__ == "__main__":
    run_stage(lambda: main(load_params()))
