"""Fine-tuning: freezing all layers except the head."""

import pytest
from torch import nn

from refit.runtime.errors import UserError
from refit.systems.freezing import FrozenBackbone


def test_weights_frozen_by_a_user_s_network_stay_frozen() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2), nn.Linear(2, 1))
    network[0].weight.requires_grad_(False)
    frozen = FrozenBackbone(1)
    frozen.freeze(network)
    assert [weight.requires_grad for weight in network.parameters()] == [False] * 6 + [True] * 2
    frozen.set_frozen(False)
    assert [weight.requires_grad for weight in network.parameters()] == [False] + [True] * 7


def test_a_network_of_one_layer_cannot_be_frozen() -> None:
    with pytest.raises(UserError, match=r"fit\.freeze_epochs = 2, but Linear has no layer before its head"):
        FrozenBackbone(2).freeze(nn.Linear(2, 2))
