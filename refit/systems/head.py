"""Which part of a system is its head: the last layer of its network, and what it has beside the network."""

from torch import nn

from refit.runtime.errors import UserError


def head(network: nn.Module) -> nn.Module:
    """The last layer that has parameters of its own, in the order in which the network holds them: of our networks
    and torchvision's the one whose outputs are the network's. Raises UserError where no layer has any."""
    layers = [layer for layer in network.modules() if any(True for _ in layer.parameters(recurse=False))]
    if not layers:
        raise UserError(f"{type(network).__name__} has no parameters; choose another model.network")
    return layers[-1]


def backbone(system: nn.Module) -> list[nn.Module]:
    """The layers of a system's network before its head; of a system that has no `network`, its own. A decoder or
    what else a system has beside its network is no part of it."""
    network: nn.Module = getattr(system, "network", system)
    last = head(network)
    return [layer for layer in network.modules() if layer is not last]


def backbone_parameters(system: nn.Module) -> set[nn.Parameter]:
    return {weight for layer in backbone(system) for weight in layer.parameters(recurse=False)}
