"""Refit's own optimizers and schedules: their effect on weights and learning rates."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from refit.artifacts.prepared import read_info
from refit.runtime.errors import UserError
from refit.systems.build import build_system
from refit.systems.optimizers import configure_optimizers
from tests.fixtures import Build, Changed


@pytest.mark.parametrize("system", ["classifier", "autoencoder"])
def test_muon_updates_the_hidden_layers_matrices_and_adamw_everything_else(
    system: str, changed: Changed, digits: Path
) -> None:
    keys = {"model.system": system, "model.network": "cnn", "optimizer.name": "muon", "optimizer.schedule": "constant"}
    params = changed({**keys, "optimizer.weight_decay": 0.3, "optimizer.momentum": 0.8})
    made: Any = build_system(params.model, read_info(digits), params.optimizer, params.loss, 0.01)
    made.trainer = SimpleNamespace(precision="32-true", gradient_clip_val=1.0, callbacks=[])
    optimizer = made.configure_optimizers()
    for weight in made.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    layers = [module.weight for module in made.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    group_of = {id(weight): group for group in optimizer.param_groups for weight in group["params"]}
    assert len(group_of) == len(list(made.parameters()))
    for weight in made.parameters():
        matrix = any(weight is layer for layer in layers)
        hidden = matrix and weight is not layers[0] and weight is not layers[-1]
        assert optimizer.state[weight]["use_muon"] == hidden
        assert ("use_fallback" in group_of[id(weight)]) == (not hidden)
        assert group_of[id(weight)]["weight_decay"] == (0.3 if matrix else 0.0)
        assert group_of[id(weight)]["momentum"] == group_of[id(weight)]["betas"][0] == 0.8
    assert len(layers) > 4


def test_a_muon_step_is_orthogonal_and_the_other_weights_take_an_adamw_step(build: Build) -> None:
    system: Any = build(
        model__network="mlp", model__width=64, optimizer__name="muon", optimizer__schedule="constant",
        optimizer__weight_decay=0.1,
    )  # fmt: skip
    system.trainer = SimpleNamespace(precision="32-true", gradient_clip_val=1.0, callbacks=[])
    first, hidden, last = (module.weight for module in system.modules() if isinstance(module, nn.Linear))
    before = {weight: weight.detach().clone() for weight in (first, hidden, last)}
    for weight in system.parameters():
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    system.configure_optimizers().step()
    moved = (before[hidden] * (1 - 0.01 * 0.1) - hidden.detach()) / 0.01
    singular = torch.linalg.svdvals(moved) / (0.2 * math.sqrt(64))  # the size of an AdamW step (Liu et al. 2025)
    assert 0.8 < singular.mean() < 1.1
    assert singular.max() < 1.4
    assert singular.median() > 0.6
    for weight in (first, last):
        by_adamw = nn.Parameter(before[weight].clone())
        by_adamw.grad = weight.grad
        torch.optim.AdamW([by_adamw], lr=0.01, weight_decay=0.1).step()
        torch.testing.assert_close(weight, by_adamw)


def test_depthwise_kernels_are_updated_by_adamw(changed: Changed) -> None:
    params = changed({"optimizer.name": "muon", "optimizer.schedule": "constant"})
    depthwise = nn.Conv2d(8, 8, 3, groups=8)
    system = Shallow()
    system.layers = nn.Sequential(nn.Conv2d(3, 8, 3), depthwise, nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3))
    optimizer: Any = configure_optimizers(system, params.optimizer, 0.01)
    assert [id(weight) for weight in optimizer.param_groups[0]["params"]] == [id(system.layers[2].weight)]
    assert any(weight is depthwise.weight for weight in optimizer.param_groups[1]["params"])


class Shallow(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8))


def test_muon_refuses_a_network_without_hidden_layers(changed: Changed) -> None:
    params = changed({"optimizer.name": "muon", "optimizer.schedule": "constant"})
    with pytest.raises(UserError, match=r"optimizer\.name = 'muon' is for the layers between .*; choose adamw"):
        configure_optimizers(Shallow(), params.optimizer, 0.01)
