"""A system by name: ours, or a user's own by dotted path (docs/systems.md)."""

from typing import Protocol

import pytorch_lightning as pl

from refit.params import LossParams, ModelParams, OptimizerParams
from refit.systems.autoencoder import Autoencoder
from refit.systems.classifier import Classifier
from refit.systems.networks import build_network, check_network
from refit.systems.user_code import Offers, check_arguments, construct, user_class

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

    Raises ValueError where model.system, or what it is to be made from, is not as params.yaml says.
    """
    system = _system_class(model)
    offers = _offers(model, info, optimizer, loss, learning_rate)
    made: pl.LightningModule = construct(system, offers, model.system_arguments, "model.system_arguments")
    return made


def check_model(model: ModelParams) -> None:
    """Raises ValueError unless the system and the network of `model` can be found and made."""
    check_network(model)
    offers = set(_offers(model, None, None, None, 0.0))
    check_arguments(_system_class(model), offers, model.system_arguments, "model.system_arguments")


def _system_class(model: ModelParams) -> type:
    system = SYSTEMS.get(model.system) or user_class(model.system, "model.system")
    if not issubclass(system, pl.LightningModule):
        raise ValueError(f"model.system = {model.system!r} is not a LightningModule; see docs/systems.md")  # noqa: TRY004, the user's
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

    return {
        "network": lambda: build_network(model, shape(), len(known().classes), known().mean, known().std),
        "encoder": lambda: build_network(model, shape(), model.embedding, known().mean, known().std),
        "classes": lambda: len(known().classes),
        "shape": shape,
        "mean": lambda: list(known().mean),
        "std": lambda: list(known().std),
        "optimizer": lambda: optimizer,
        "loss": lambda: loss,
        "learning_rate": lambda: rate,
        "test_time_flip": lambda: model.test_time_flip,
    }
