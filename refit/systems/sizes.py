"""Whether a network accepts images of another size than the one that it was built for."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from refit.params import TIMM, ModelParams
from refit.params.dotted import as_in_yaml
from refit.runtime.errors import UserError
from refit.systems.networks import build_network, network_arguments

_DYNAMIC = {"dynamic_img_size": True}  # timm's vision transformers then resample their embeddings of positions


def check_train_size(model: ModelParams, shape: tuple[int, int, int], size: tuple[int, int]) -> None:
    """Raises UserError unless the network that `model` names, built for images of `shape` (C, H, W), can be trained on
    images of `size` (height, width), all in pixels: it is run on two blank ones.

    A network that cannot be built for `shape` passes: building it gives an error of its own.
    """
    arguments = network_arguments(model)
    network = _built(model.network, arguments, shape)
    fault = _fault(network, (shape[0], *size)) if network else None
    if fault is None:
        return
    remedy = "set it to another size or null, or choose a network whose input size is not fixed"
    dynamic = {**arguments, **_DYNAMIC}
    if (
        model.network.startswith(TIMM)
        and (network := _built(model.network, dynamic, shape))
        and _fault(network, (shape[0], *size)) is None
    ):
        remedy = f"set model.network_arguments to {as_in_yaml(dynamic)}, or augment.train_size to null"
    raise UserError(
        f"augment.train_size = {min(size)}, but model.network = {model.network!r} for images of {shape[1]}x{shape[2]} "
        f"pixels cannot be trained on others: {fault}; {remedy}"
    )


def _built(name: str, arguments: Mapping[str, Any], shape: tuple[int, int, int]) -> nn.Module | None:
    """A new network for images of `shape`; None if it cannot be built with these arguments."""
    try:
        return build_network(name, arguments, shape, 2, [0.5] * shape[0], [0.5] * shape[0]).eval()
    except Exception:  # noqa: BLE001, the libraries and users' networks raise anything
        return None


@torch.no_grad()
def _fault(network: nn.Module, shape: tuple[int, int, int]) -> str | None:
    """Why `network` cannot be run on images of `shape`; None if it can."""
    try:
        network(torch.zeros(2, *shape, dtype=torch.uint8))
    except Exception as error:  # noqa: BLE001, as above
        return " ".join(str(error).split())
    return None
