"""The head of a system: the output layers of its network, and all layers outside the network. The rest is the
backbone."""

from typing import Any

from torch import nn

from refit.runtime.errors import UserError


def head(network: nn.Module) -> list[nn.Module]:
    """The output layers: all layers with parameters in the classifiers that a timm network names, of which a distilled
    one has two; in other networks the last layer that has parameters, in the order of `modules()`.

    Raises UserError if no layer has parameters.
    """
    layers = _layers(network)
    if not layers:
        raise UserError(f"{type(network).__name__} has no parameters; choose another model.network")
    return _classifiers(network) or layers[-1:]


def head_names(network: nn.Module) -> list[str]:
    """The names in `network` of its head's layers."""
    layers = set(head(network))
    return [name for name, layer in network.named_modules() if layer in layers]


def backbone(system: nn.Module) -> list[nn.Module]:
    """The layers before the head in `system.network`, or in the whole system if it has no `network`. Layers outside the
    network, such as a decoder, are not included."""
    network: nn.Module = getattr(system, "network", system)
    last = set(head(network))
    return [layer for layer in network.modules() if layer not in last]


def backbone_parameters(system: nn.Module) -> set[nn.Parameter]:
    return {weight for layer in backbone(system) for weight in layer.parameters(recurse=False)}


def timm_network(network: nn.Module) -> nn.Module | None:
    """The network of timm in `network`, after the layers that Refit puts before it; None if it is another's."""
    while isinstance(network, nn.Sequential) and len(network) and not hasattr(network, "get_classifier"):
        network = network[-1]
    return network if hasattr(network, "get_classifier") else None


def _classifiers(network: nn.Module) -> list[nn.Module]:
    """The layers of a timm network's classifiers; empty for any other network."""
    if (timms := timm_network(network)) is None:
        return []
    found: Any = timms.get_classifier()  # type: ignore[operator]
    return [layer for one in (found if isinstance(found, tuple) else (found,)) for layer in _layers(one)]


def _layers(network: nn.Module) -> list[nn.Module]:
    return [layer for layer in network.modules() if has_parameters(layer)]


def has_parameters(layer: nn.Module) -> bool:
    """Whether the layer has parameters of its own, besides those of the layers in it."""
    return any(True for _ in layer.parameters(recurse=False))
