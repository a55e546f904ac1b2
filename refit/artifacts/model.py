"""The model artifact: a self-contained folder that is read without unpickling.

`model.safetensors` contains the weights. `model.json` is the model's record, with a format number: how to build the
system, its input and the meaning of its answers. `params.json` contains the parameters of the fit, for people and
reports. A record of an earlier format is migrated when it is read, so that every earlier model still loads.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from refit.artifacts.files import read_json, whole_folder, write_bytes, write_json
from refit.artifacts.paths import MODEL
from refit.artifacts.prepared import DEFAULT_RESIZE, Color
from refit.params.data import Resize
from refit.runtime.errors import UserError

if TYPE_CHECKING:  # torch takes seconds to import: only reading and writing weights needs it
    from torch import Tensor

WEIGHTS, RECORD, FIT_PARAMS = "model.safetensors", "model.json", "params.json"
FORMAT: Literal[3] = 3


class Blueprint(BaseModel):
    """Everything except the weights that determines a model's answers: enough to build its system.

    A new key needs a default with which models without it answer as they did, and is left out of the record while it
    has that value (`exclude_if`): the same model keeps its sha256, and with it its name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: Literal["classification"] = "classification"
    system: str
    system_arguments: dict[str, Any]
    network: str
    network_arguments: dict[str, Any]
    """For one of our networks all arguments, including the defaults."""
    embedding: int
    """Length of an encoder's output."""
    test_time_flip: bool
    classes: list[str]
    color: Color
    shape: tuple[int, int, int]
    """C, H, W of the uint8 input images."""
    resize: Resize = Field(default=DEFAULT_RESIZE, exclude_if=lambda resize: resize == DEFAULT_RESIZE)
    """How an image of another size becomes one of `shape`: data.resize."""
    mean: list[float]
    """Mean, and below standard deviation, of the training images by channel, pixels scaled to 0..1."""
    std: list[float]
    code: dict[str, str] = {}
    """For a system or network of the user's own, by its dotted path: the sha256 of what its file means, or the version
    of its package."""


class ModelRecord(Blueprint):
    """The content of model.json."""

    format: Literal[3] = FORMAT
    weights_sha256: str
    """Of model.safetensors."""
    sha256: str
    """Identifies the model. Of the blueprint and the weights; in formats 1 and 2, of the weights alone."""
    data_sha256: str
    batch_size: int
    """The micro-batch of the fit, or what fits into its memory if it was trained on smaller images."""
    debug: bool
    """Whether the debug section shortened the fit: such a model is never registered."""
    written_as: int = Field(default=FORMAT, exclude=True)
    """The format of the file, before migration."""

    @classmethod
    def of(cls, blueprint: Blueprint, weights: bytes, *, data_sha256: str, batch_size: int, debug: bool) -> Self:
        weights_sha256 = hashlib.sha256(weights).hexdigest()
        return cls(
            **blueprint.model_dump(),
            weights_sha256=weights_sha256,
            sha256=identity(blueprint.model_dump(mode="json"), weights_sha256),
            data_sha256=data_sha256,
            batch_size=batch_size,
            debug=debug,
        )


def identity(blueprint: Mapping[str, Any], weights_sha256: str) -> str:
    """The sha256 of everything that determines a model's answers; `blueprint` as in model.json."""
    content = {**blueprint, "weights": weights_sha256}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def model_sha256(folder: Path = MODEL) -> str:
    """The sha256 that identifies the model in `folder`. Raises UserError as read_record."""
    return read_record(folder).sha256


def model_name(sha256: str) -> str:
    """A model's name for people: the beginning of its sha256."""
    return sha256[:12]


def write_model(
    weights: "Mapping[str, Tensor]",
    blueprint: Blueprint,
    *,
    data_sha256: str,
    batch_size: int,
    params: Mapping[str, Any],
    debug: bool = False,
    folder: Path = MODEL,
) -> ModelRecord:
    """Write the artifact atomically; returns its record. `params` are the parameters of the fit, as plain values."""
    import torch
    from safetensors.torch import save

    # Copy each weight: layers may share one, which safetensors does not accept.
    content = save({name: weight.clone(memory_format=torch.contiguous_format) for name, weight in weights.items()})
    record = ModelRecord.of(blueprint, content, data_sha256=data_sha256, batch_size=batch_size, debug=debug)
    with whole_folder(folder) as new:
        write_bytes(new / WEIGHTS, content)
        write_json(new / RECORD, record.model_dump(mode="json"))
        write_json(new / FIT_PARAMS, dict(params))
    return record


def read_record(folder: Path = MODEL) -> ModelRecord:
    """The record in model.json, migrated to the current format. Does not read the weights.

    Raises UserError if it is missing, damaged, or of an unknown format.
    """
    path = folder / RECORD
    values = read_json(path, "dvc repro fit")
    written_as = values.get("format")
    if not isinstance(written_as, int) or written_as not in (*_MIGRATIONS, FORMAT):
        raise UserError(
            f"{path}: format = {written_as!r} is unknown; this version of Refit reads formats 1 to {FORMAT}: update "
            "Refit, or run: dvc repro --force fit"
        )
    try:
        for number in range(written_as, FORMAT):
            values = _MIGRATIONS[number](values)
        record = ModelRecord.model_validate({**values, "written_as": written_as})
    except KeyError as error:
        raise UserError(f"{path}: {error.args[0]} is missing; run: dvc repro --force fit") from None
    except (AttributeError, TypeError) as error:  # a migration of values that no version wrote
        raise UserError(f"{path} is damaged: {error}; run: dvc repro --force fit") from None
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise UserError(f"{path}: {where}: {fault['msg']}; run: dvc repro --force fit") from None
    # Of the keys that the file has: it may be older than the newest of them.
    blueprint = {name: values[name] for name in Blueprint.model_fields if name in values}
    if written_as == FORMAT and record.sha256 != identity(blueprint, record.weights_sha256):
        raise UserError(f"{path} was changed: its sha256 does not match its content; run: dvc checkout {folder}")
    return record


def read_weights(record: ModelRecord, folder: Path = MODEL) -> "dict[str, Tensor]":
    """The weights of the model in `folder`, by their names in the system's state_dict.

    Raises UserError if the file is missing, is not the one that `record` describes, or is not a safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = folder / WEIGHTS
    if not path.is_file():
        raise UserError(f"{path} does not exist; run: dvc repro fit")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != record.weights_sha256:
        raise UserError(f"{path} is not the file that {RECORD} describes; run: dvc checkout {folder}")
    try:
        weights = load(content)
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file: {error}; run: dvc repro --force fit") from None
    if record.written_as == 1:  # format 1 contained the network's weights only
        weights = {f"network.{name}": weight for name, weight in weights.items()}
    return weights


def read_fit_params(folder: Path = MODEL) -> dict[str, Any]:
    """The parameters that the model was fitted with."""
    return read_json(folder / FIT_PARAMS, "dvc repro --force fit")


def _to_format_2(values: dict[str, Any]) -> dict[str, Any]:
    """Format 1, from 2025-11-23, had one system, and described its network in a section named `network`."""
    network = values.pop("network")
    return {**values, "format": 2, "model": {"system": values.pop("system", "classifier"), **network}, "debug": False}


# Format 2 did not record default values; these are its networks' defaults of width and dropout.
_DEFAULTS_OF_FORMAT_2 = {"mlp": (256, 0.2), "cnn": (32, 0.1), "resnet9": (64, 0.0), "airbench": (64, 0.0)}


def _to_format_3(values: dict[str, Any]) -> dict[str, Any]:
    """Format 2 contained a copy of the section `model` of params.yaml, whose keys changed over time."""
    model, weights_sha256 = values["model"], values["sha256"]
    arguments = model.get("network_arguments", {})
    if defaults := _DEFAULTS_OF_FORMAT_2.get(model["network"]):
        chosen = zip(("width", "dropout"), defaults, strict=True)
        arguments = {name: default if model.get(name) is None else model[name] for name, default in chosen}
    return {
        **{name: values[name] for name in ("classes", "color", "shape", "mean", "std", "batch_size", "data_sha256")},
        "system": model["system"],
        "system_arguments": model.get("system_arguments", {}),
        "network": model["network"],
        "network_arguments": arguments,
        "embedding": model.get("embedding", 64),
        "test_time_flip": model.get("test_time_flip", False),
        "weights_sha256": weights_sha256,
        "sha256": weights_sha256,
        "debug": values.get("debug", False),
    }


_MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _to_format_2, 2: _to_format_3}
"""Migrations from each earlier format to the next one."""
