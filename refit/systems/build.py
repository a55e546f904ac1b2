"""Build a system by name: one of Refit's, or the user's own by dotted path (docs/systems.md)."""

import inspect

import pytorch_lightning as pl
from torch import nn

from refit.artifacts.model import Blueprint
from refit.artifacts.prepared import DatasetInfo
from refit.params import LossParams, ModelParams, OptimizerParams
from refit.params.dotted import as_in_yaml
from refit.runtime.errors import UserError
from refit.runtime.fingerprint import own_code
from refit.systems.autoencoder import Autoencoder
from refit.systems.classifier import Classifier
from refit.systems.networks import build_network, check_network, network_arguments
from refit.systems.user_code import Provided, check_arguments, construct, user_class
from refit.systems.weights import check_weights_can_be_had, load_weights

SYSTEMS: dict[str, type[pl.LightningModule]] = {"classifier": Classifier, "autoencoder": Autoencoder}


def blueprint_of(model: ModelParams, info: DatasetInfo) -> Blueprint:
    """The system that `model` describes, for the images that `info` describes."""
    channels, height, width = info.shape
    return Blueprint(
        system=model.system,
        system_arguments=model.system_arguments,
        network=model.network,
        network_arguments=network_arguments(model),
        embedding=model.embedding,
        test_time_flip=model.test_time_flip,
        classes=info.classes,
        color=info.color,
        shape=(channels, height, width),
        resize=info.resize,
        mean=info.mean,
        std=info.std,
        code=own_code((model.system, model.network)),
    )


def build_system(
    model: ModelParams,
    info: DatasetInfo,
    optimizer: OptimizerParams | None = None,
    loss: LossParams | None = None,
    learning_rate: float = 0.0,
) -> pl.LightningModule:
    """A newly initialised system for the images that `info` describes.

    `optimizer`, `loss` and `learning_rate` are needed for training only; with an optimizer the network starts from
    model.weights. Raises UserError if the system, its network or their arguments are invalid.
    """
    return assemble(blueprint_of(model, info), optimizer, loss, learning_rate, model if optimizer else None)


def assemble(
    blueprint: Blueprint,
    optimizer: OptimizerParams | None = None,
    loss: LossParams | None = None,
    learning_rate: float = 0.0,
    start: ModelParams | None = None,
) -> pl.LightningModule:
    """The system that `blueprint` describes, newly initialised; its network starts from the weights that `start`
    names, if any. Raises UserError as build_system."""
    system_class = _system_class(blueprint.system)

    def network(outputs: int, *, to_logits: bool = True) -> nn.Module:
        built = build_network(
            blueprint.network, blueprint.network_arguments, blueprint.shape, outputs, blueprint.mean, blueprint.std
        )
        if start is not None and start.weights is not None:
            load_weights(built, start, to_logits=to_logits)
        return built

    provided: Provided = {
        "network": lambda: network(len(blueprint.classes)),
        "encoder": lambda: network(blueprint.embedding, to_logits=False),
        "classes": lambda: len(blueprint.classes),
        "shape": lambda: blueprint.shape,
        "mean": lambda: list(blueprint.mean),
        "std": lambda: list(blueprint.std),
        "optimizer": lambda: optimizer,
        "loss": lambda: loss,
        "learning_rate": lambda: learning_rate,
        "test_time_flip": lambda: blueprint.test_time_flip,
        "task": lambda: blueprint.task,
    }
    assert provided.keys() == PROVIDED
    built: pl.LightningModule = construct(system_class, provided, blueprint.system_arguments, "model.system_arguments")
    return built


PROVIDED = {
    "network", "encoder", "classes", "shape", "mean", "std", "optimizer", "loss", "learning_rate", "test_time_flip",
    "task",
}  # fmt: skip
"""The arguments that Refit provides to a system's constructor, by name."""


def check_model(model: ModelParams, loss: LossParams) -> None:
    """Raises UserError unless the system, the network and the weights that `model` names can be found and built, and
    the system takes what is set for it."""
    check_network(model)
    system = _system_class(model.system)
    check_arguments(system, PROVIDED, model.system_arguments, "model.system_arguments")
    if model.weights is not None:
        check_weights_can_be_had(model)
    _check_effect(system, model, loss)


# The values that reach a system only through the arguments of this name.
_REACHED_BY = {
    "loss": (("loss.label_smoothing", "loss.class_weights"), {"loss"}),
    "test_time_flip": (("model.test_time_flip",), {"test_time_flip"}),
    "encoder": (("model.embedding",), {"encoder"}),
    "network or encoder": (
        ("model.network", "model.network_arguments", "model.width", "model.dropout", "model.weights"),
        {"network", "encoder"},
    ),
}


def _check_effect(system: type, model: ModelParams, loss: LossParams) -> None:
    accepted = inspect.signature(system).parameters.keys()
    for argument, (keys, names) in _REACHED_BY.items():
        if names & accepted:
            continue
        for key in keys:
            section, name = key.split(".")
            values = model if section == "model" else loss
            value, default = getattr(values, name), getattr(type(values)(), name)
            if value != default:
                raise UserError(
                    f"{key} = {as_in_yaml(value)} has no effect with {model.system}, whose constructor has no argument "
                    f"{argument}; set {key} to its default, {as_in_yaml(default)}, or add the argument; see "
                    "docs/systems.md"
                )


def _system_class(name: str) -> type[pl.LightningModule]:
    system = SYSTEMS.get(name) or user_class(name, "model.system")
    if not issubclass(system, pl.LightningModule):
        raise UserError(f"model.system = {name!r} is not a LightningModule; see docs/systems.md")
    if system.forward is pl.LightningModule.forward:
        raise UserError(
            f"model.system = {name!r} has no forward; define forward(images) to return the probabilities; see "
            "docs/systems.md"
        )
    if system.predict_step is not pl.LightningModule.predict_step:
        raise UserError(
            f"model.system = {name!r} overrides predict_step, but Refit predicts with forward(images): return the "
            "probabilities there, and remove predict_step; see docs/systems.md"
        )
    return system
