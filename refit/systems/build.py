"""A system by name: ours, or a user's own by dotted path (docs/systems.md)."""

import inspect
from typing import Protocol

import pytorch_lightning as pl
from torch import nn

from refit.params import LossParams, ModelParams, OptimizerParams
from refit.runtime.errors import UserError
from refit.systems.autoencoder import Autoencoder
from refit.systems.classifier import Classifier
from refit.systems.networks import build_network, check_network
from refit.systems.user_code import Offers, check_arguments, construct, user_class
from refit.systems.weights import check_weights, load_weights

SYSTEMS: dict[str, type[pl.LightningModule]] = {"classifier": Classifier, "autoencoder": Autoencoder}


class Described(Protocol):
    """What a system must know of the images: DatasetInfo and ModelDescription both do."""

    @property
    def classes(self) -> list[str]: ...
    @property
    def shape(self) -> list[int] | tuple[int, int, int]: ...
    @property
    def mean(self) -> list[float]: ...
    @property
    def std(self) -> list[float]: ...


def build_system(
    model: ModelParams,
    info: Described,
    optimizer: OptimizerParams | None = None,
    loss: LossParams | None = None,
    learning_rate: float = 0.0,
) -> pl.LightningModule:
    """A freshly initialised system for images such as `info` describes; the three after it are for training alone.

    One that is given an optimizer, to be trained, begins with model.weights.
    Raises UserError where model.system, or what it is to be made from, is not as params.yaml says.
    """
    system = _system_class(model)
    offers = _offers(model, info, optimizer, loss, learning_rate)
    made: pl.LightningModule = construct(system, offers, model.system_arguments, "model.system_arguments")
    return made


def check_model(model: ModelParams) -> None:
    """Raises UserError unless the system and the network of `model` can be found and made, and its weights too."""
    check_network(model)
    offers = set(_offers(model, None, None, None, 0.0))
    system = _system_class(model)
    check_arguments(system, offers, model.system_arguments, "model.system_arguments")
    if model.weights is not None:
        check_weights(model)
        if not inspect.signature(system).parameters.keys() & {"network", "encoder"}:
            raise UserError(
                f"model.weights = {model.weights!r} has no effect with {model.system}, which makes its own network; "
                "set it to null"
            )


def _system_class(model: ModelParams) -> type:
    system = SYSTEMS.get(model.system) or user_class(model.system, "model.system")
    if not issubclass(system, pl.LightningModule):
        raise UserError(f"model.system = {model.system!r} is not a LightningModule; see docs/systems.md")
    return system


def _offers(
    model: ModelParams, info: Described | None, optimizer: OptimizerParams | None, loss: LossParams | None, rate: float
) -> Offers:
    def known() -> Described:
        assert info is not None
        return info

    def shape() -> tuple[int, int, int]:
        channels, height, width = known().shape
        return channels, height, width

    def network(outputs: int) -> nn.Module:
        built = build_network(model, shape(), outputs, known().mean, known().std)
        if optimizer is not None and model.weights is not None:
            load_weights(built, model)
        return built

    return {
        "network": lambda: network(len(known().classes)),
        "encoder": lambda: network(model.embedding),
        "classes": lambda: len(known().classes),
        "shape": shape,
        "mean": lambda: list(known().mean),
        "std": lambda: list(known().std),
        "optimizer": lambda: optimizer,
        "loss": lambda: loss,
        "learning_rate": lambda: rate,
        "test_time_flip": lambda: model.test_time_flip,
    }
