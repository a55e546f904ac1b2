"""Check params.yaml, the raw images, the weights and the devices, and write the code and values of each stage.

All other stages depend on what this stage writes, so none starts before this stage has passed, and each becomes stale
when its own code or parameters change.
"""

import json
import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from refit.artifacts.checked import passed_before, write_checked
from refit.artifacts.files import write_bytes
from refit.data.duplicates import check_audit_packages
from refit.data.sources.open import link_in_copy, open_source, stores_photos
from refit.data.sources.unlabelled import check_unlabelled
from refit.params import LIBRARIES, OUR_NETWORKS, OUR_SYSTEMS, WEIGHTS_FILES, Params, load_params
from refit.params.model import is_file_name
from refit.runtime.errors import UserError
from refit.runtime.stage import run_stage

SCHEMA = Path("docs/params.schema.json")
USERS_FOLDERS = (Path("data/raw"), Path("data/new"), WEIGHTS_FILES)  # for files of data.root, predict.images, weights


def main(params: Params) -> None:
    for folder in USERS_FOLDERS:
        folder.mkdir(parents=True, exist_ok=True)
    link_in_copy(params.data.root)
    source = open_source(params.data)
    if params.model.system == "classifier" and not isinstance(params.loss.class_weights, str):
        params.loss.check_class_weights(len(source.read_classes()))
    check_unlabelled(params.predict.images)
    resolved = passed_before(params) if weights_are_there(params.model.weights) else None
    resolved = resolved or check_network(params)
    if params.data.group_duplicates:
        check_audit_packages()
    if params.trainer.accelerator not in ("auto", "cpu") or params.trainer.devices > 1:
        from refit.training.trainer import check_devices

        check_devices(params.trainer)
    if params.trainer.compile and not any(map(shutil.which, [os.environ.get("CXX") or "g++", "clang++"])):
        raise UserError(
            f"trainer.compile = {params.trainer.compile!r} needs a C++ compiler, and g++ was not found; install it, "
            "or set trainer.compile to null"
        )
    for name in params.tracking.loggers:  # each needs the package of the same name; csv is built into Python
        if find_spec(name) is None:
            raise UserError(f"tracking.loggers names {name}, which is not installed; run: uv pip install {name}")
    changes = write_checked(params, resolved)
    write_bytes(SCHEMA, (json.dumps(Params.model_json_schema(), indent=2) + "\n").encode())
    if (size := resolved["data.image_size"]) != params.data.image_size:
        told = f"the size that {params.model.weights} of {params.model.network} was trained at"
        changes.insert(0, f"data.image_size = auto is {size}, {told}")
    print("params.yaml is valid", *changes, sep="\n")


def weights_are_there(weights: str | None) -> bool:
    """False if `weights` names a file that is missing."""
    return weights is None or not is_file_name(weights) or Path(weights).is_file()


def check_network(params: Params) -> dict[str, object]:
    """Build what `params` describe, which takes seconds of imports unless it is Refit's own. Returns the resolved
    values of the keys in RESOLVED. Raises UserError if something cannot be built or had."""
    model = params.model
    if model.system not in OUR_SYSTEMS or model.network not in OUR_NETWORKS or model.system_arguments or model.weights:
        from refit.systems.build import check_model

        check_model(model, params.loss)
    size = image_size(params)
    check_train_size(params, size)
    return {"data.image_size": size}


def image_size(params: Params) -> int | Literal["auto"]:
    """data.image_size, where `auto` is that of pretrained weights. `prepare` cannot look it up: it does not read the
    section `model`, so that another network of the same size does not decode the images again."""
    given, model = params.data.image_size, params.model
    if (
        given != "auto"
        or not stores_photos(params.data.source)
        or not (model.weights and model.network.startswith(LIBRARIES))
    ):
        return given
    from refit.systems.weights import input_size

    return input_size(model) or given


def check_train_size(params: Params, image_size: int | Literal["auto"]) -> None:
    """Raises UserError if the network cannot be trained on images of augment.train_size. While the size of the prepared
    images is not known, a network is built for twice as large ones: one of a fixed size fails at any other."""
    train_size = params.augment.train_size
    if train_size is None:
        return
    if image_size != "auto" and train_size > image_size:  # it was auto in params.yaml
        raise UserError(f"augment.train_size = {train_size} is larger than data.image_size, {image_size}; lower it")
    if params.model.network not in OUR_NETWORKS:
        from refit.systems import sizes

        side = 2 * train_size if image_size == "auto" else image_size
        shape = (1 if params.data.color == "grey" else 3, side, side)
        sizes.check_train_size(params.model, shape, (train_size, train_size))


if __name__ == "__main__":
    run_stage(lambda: main(load_params()))
