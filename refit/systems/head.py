"""The head of a system: the last layer of its network, and all layers outside the network. The rest is the backbone."""

from torch import nn

from refit.runtime.errors import UserError


def head(network: nn.Module) -> nn.Module:
    """The last layer that has parameters, in the order of `modules()`; in our networks and torchvision's this is the
    output layer. Raises UserError if no layer has parameters."""
    layers = [layer for layer in network.modules() if any(True for _ in layer.parameters(recurse=False))]
    if not layers:
        raise UserError(f"{type(network).__name__} has no parameters; choose another model.network")
    return layers[-1]


def backbone(system: nn.Module) -> list[nn.Module]:
    """The layers before the head in `system.network`, or in the whole system if it has no `network`. Layers outside the
    network, such as a decoder, are not included."""
    network: nn.Module = getattr(system, "network", system)
    last = head(network)
    return [layer for layer in network.modules() if layer is not last]


def backbone_parameters(system: nn.Module) -> set[nn.Parameter]:
    return {weight for layer in backbone(system) for weight in layer.parameters(recurse=False)}
