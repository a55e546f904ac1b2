"""The model artifact: a folder that needs nothing else to be used, and that is read without unpickling.

`model.safetensors` holds the weights; `model.json` how to build the system, how to make its input, what its
outputs mean, and where it came from. The sha256 of `model.safetensors` names the model everywhere.
"""

import hashlib
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from refit.artifacts.files import whole_folder, write_bytes, write_json
from refit.artifacts.prepared import Color, DatasetInfo
from refit.params import ModelParams
from refit.runtime.errors import UserError
from refit.systems.build import build_system

MODEL = Path("data/model")


class ModelDescription(BaseModel):
    """What model.json holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[2] = 2
    model: ModelParams
    classes: list[str]
    color: Color
    shape: tuple[int, int, int]
    """C, H, W of the uint8 images that go in."""
    mean: list[float]
    std: list[float]
    batch_size: int
    """The micro-batch it was trained with: what fits the memory."""
    data_sha256: str
    sha256: str
    """Of model.safetensors."""
    debug: bool
    """Whether the debug section shortened the fit: then it is a trial, and is never registered."""
    params: dict[str, Any]
    """Every parameter of the fit; for people, nothing reads it."""


def write_model(
    system: pl.LightningModule, model: ModelParams, info: DatasetInfo, batch_size: int, params: dict[str, Any],
    folder: Path = MODEL, *, debug: bool = False,
) -> ModelDescription:  # fmt: skip
    """Write the artifact whole; returns its description."""
    # A copy each: layers may share a weight, which safetensors refuses.
    state = {name: weight.clone(memory_format=torch.contiguous_format) for name, weight in system.state_dict().items()}
    weights = save(state)
    description = ModelDescription(
        model=model,
        classes=info.classes,
        color=info.color,
        shape=(info.shape[0], info.shape[1], info.shape[2]),
        mean=info.mean,
        std=info.std,
        batch_size=batch_size,
        data_sha256=info.sha256,
        sha256=hashlib.sha256(weights).hexdigest(),
        debug=debug,
        params=params,
    )
    with whole_folder(folder) as new:
        write_bytes(new / "model.safetensors", weights)
        write_json(new / "model.json", description.model_dump(mode="json"))
    return description


def read_model(folder: Path = MODEL) -> tuple[pl.LightningModule, ModelDescription]:
    """The trained system, as it is to be used (no dropout), and its description. Raises UserError that says what is
    missing or wrong."""
    description_file, weights_file = folder / "model.json", folder / "model.safetensors"
    for file in (description_file, weights_file):
        if not file.is_file():
            raise UserError(f"{file} is not here; run: dvc repro fit")
    try:
        description = ModelDescription.model_validate_json(description_file.read_bytes())
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise UserError(f"{description_file}: {where}: {fault['msg']}; run: dvc repro --force fit") from None
    if hashlib.sha256(weights_file.read_bytes()).hexdigest() != description.sha256:
        raise UserError(f"{weights_file} is not the file that model.json describes; run: dvc checkout {folder}")
    system = build_system(description.model, description)
    try:
        weights = load_file(weights_file)
        system.to(next(w.dtype for w in weights.values() if w.is_floating_point()))  # double, where the fit was
        system.load_state_dict(weights)
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"{weights_file} does not fit the system in model.json: {error}") from None
    except StopIteration:
        raise UserError(f"{weights_file} does not fit the system in model.json: it holds no weight") from None
    return system.eval(), description
