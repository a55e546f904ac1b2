"""How the head of a network is found."""

import pytest
import torch
import torchvision
from torch import nn

from refit.params import OUR_NETWORKS
from refit.systems.head import head
from refit.systems.networks import build_network


@pytest.mark.parametrize("network", [*OUR_NETWORKS, "torchvision:resnet18", "torchvision:shufflenet_v2_x0_5"])
def test_the_head_is_the_layer_that_gives_the_network_s_outputs(network: str) -> None:
    built = build_network(network, {}, (1, 32, 32), 7, [0.5], [0.5])
    (layer,) = head(built)
    assert isinstance(layer, nn.Linear)
    assert layer.out_features == 7


def test_the_head_of_every_torchvision_classifier_has_as_many_outputs_as_classes() -> None:
    names = torchvision.models.list_models(module=torchvision.models)
    for name in set(names) - {"googlenet", "inception_v3"}:
        if name.startswith("regnet_") and name != "regnet_y_400mf":  # cannot be built on "meta"; one is enough
            continue
        with torch.device("cpu" if name == "regnet_y_400mf" else "meta"):
            network = torchvision.models.get_model(name, weights=None, num_classes=7)
        (layer,) = head(network)
        assert {len(weight) for weight in layer.parameters()} == {7}, name
