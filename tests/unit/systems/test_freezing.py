"""Fine-tuning: freezing all layers except the head, and the first layers."""

import pytest
import torch
from torch import nn

from refit.runtime.errors import UserError
from refit.systems.freezing import FrozenBackbone, freeze_first_layers
from refit.systems.head import head
from refit.systems.networks import build_network


def test_weights_frozen_by_a_user_s_network_stay_frozen() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2), nn.Linear(2, 1))
    network[0].weight.requires_grad_(False)
    frozen = FrozenBackbone(1)
    frozen.freeze(network)
    assert [weight.requires_grad for weight in network.parameters()] == [False] * 6 + [True] * 2
    frozen.set_frozen(False)
    assert [weight.requires_grad for weight in network.parameters()] == [False] + [True] * 7


def test_a_network_of_one_layer_cannot_be_frozen() -> None:
    with pytest.raises(UserError, match=r"fit\.freeze_epochs = 2, but Linear has no layer before its head that could"):
        FrozenBackbone(2).freeze(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("name", "last", "next_one"),
    [
        ("timm:test_efficientnet", "blocks.1", "blocks.3"),
        ("timm:test_vit", "blocks.1", "blocks.3"),
        ("timm:test_convnext", "stages.1", "stages.3"),
        ("torchvision:resnet18", "layer1", "layer3"),
    ],
)
def test_the_first_layers_of_every_kind_of_network_are_those_near_its_input(
    name: str, last: str, next_one: str
) -> None:
    network = build_network(name, {}, (3, 160, 160), 2, [0.5] * 3, [0.25] * 3)
    freeze_first_layers(network, 0.4)
    learns = {key.removeprefix("1."): weight.requires_grad for key, weight in network.named_parameters()}
    assert not any(does for key, does in learns.items() if key.startswith(f"{last}."))
    assert all(does for key, does in learns.items() if key.startswith(f"{next_one}."))
    assert all(weight.requires_grad for layer in head(network) for weight in layer.parameters())
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network.train()
    network(torch.randint(0, 256, (2, 3, 160, 160), dtype=torch.uint8))
    trained = {key.rpartition(".")[0] for key, weight in network.named_parameters() if weight.requires_grad}
    changed = {key.rpartition(".")[0] for key, value in network.state_dict().items() if not value.equal(before[key])}
    assert changed <= trained, "frozen batch norm keeps its statistics in training mode"


def test_a_share_that_freezes_no_layer_is_refused() -> None:
    with pytest.raises(UserError, match=r"freeze_share = 0\.2 freezes no layer: Sequential has 1 before its head"):
        freeze_first_layers(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), 0.2)


def test_frozen_batch_norm_without_weights_keeps_its_statistics_too() -> None:
    network = nn.Sequential(
        nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False), nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False),
        nn.Linear(2, 2), nn.Linear(2, 1),
    )  # fmt: skip
    freeze_first_layers(network, 0.6)
    network(torch.rand(8, 2))
    steps = {name: int(value) for name, value in network.state_dict().items() if name.endswith("batches_tracked")}
    assert steps == {"1.num_batches_tracked": 0, "3.num_batches_tracked": 1}
    assert [weight.requires_grad for weight in network.parameters()] == [False] * 4 + [True] * 4
