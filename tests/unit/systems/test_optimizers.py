"""The optimizers and schedules that are not torch's own one-cycle: what they do to weights and rates."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from refit.artifacts.choices import BatchChoice
from refit.artifacts.prepared import read_info
from refit.batches.datamodule import PreparedData
from refit.params import Params
from refit.runtime.errors import UserError
from refit.systems.build import build_system
from refit.systems.classifier import Classifier
from refit.systems.optimizers import configure_optimizers
from refit.training.tuning import find_learning_rate, scale_batch
from tests.fixtures import Changed, Fit, watched_by

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType"),  # MLflow's, of a function of its own
]

STEPS_AN_EPOCH = 18
Build = Callable[[Params], Classifier]


@pytest.fixture
def build(digits: Path) -> Build:
    def made(params: Params) -> Classifier:
        torch.manual_seed(0)
        system = build_system(params.model, read_info(digits), params.optimizer, params.loss, 0.01)
        assert isinstance(system, Classifier)
        return system

    return made


@pytest.fixture
def seen(fitted: Fit) -> Callable[..., "Seen"]:
    """A fit with these keys changed, as seen at each optimizer step."""

    def run(learning_rate: float = 0.01, **keys: object) -> Seen:
        witness = Seen()
        with watched_by(witness):
            fitted(learning_rate=learning_rate, **keys)
        return witness

    return run


class Seen(Callback):
    def __init__(self) -> None:
        self.rates: list[float] = []
        self.gradients: list[Tensor] = []
        """Of all weights, as the optimizer finds them."""

    def on_train_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
        (optimizer,) = trainer.optimizers
        self.rates.append(optimizer.param_groups[0]["lr"])
        if not hasattr(self, "step"):
            self.step = optimizer.register_step_pre_hook(lambda optimizer, *_: self._look(optimizer))

    def _look(self, optimizer: torch.optim.Optimizer) -> None:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        # The closure, which computes the gradients and clips them, has yet to run: these are the last step's.
        if weights[0].grad is not None:
            self.gradients.append(torch.cat([weight.grad.flatten() for weight in weights]).clone())


def test_cosine_warm_up_climbs_in_a_straight_line_and_falls_along_a_cosine(seen: Any) -> None:
    rates = seen(optimizer__schedule="cosine_warm_up", optimizer__warm_up=0.25, fit__max_epochs=4).rates
    steps, climb = 4 * STEPS_AN_EPOCH, STEPS_AN_EPOCH
    assert len(rates) == steps
    expected = [0.01 * (step + 1) / (climb + 1) for step in range(climb)]
    expected += [0.005 * (1 + math.cos(math.pi * step / (steps - climb))) for step in range(steps - climb)]
    assert rates == pytest.approx(expected)


def test_plain_cosine_has_no_warm_up(seen: Any) -> None:
    rates = seen(optimizer__schedule="cosine").rates
    assert rates[0] == 0.01
    assert rates == sorted(rates, reverse=True)


def test_plateau_lowers_the_rate_after_its_patience_without_a_lower_val_loss(seen: Any) -> None:
    """At a rate at which val_loss goes up and down: each epoch's rate by hand, from the losses that were written."""
    keys = {"optimizer__schedule": "plateau", "optimizer__plateau_factor": 0.5, "optimizer__plateau_patience": 1}
    rates = seen(learning_rate=1.0, fit__max_epochs=8, **keys).rates
    lines = [line.split(",") for line in Path("data/evaluation/history.csv").read_text().splitlines()]
    losses = [float(line[lines[0].index("val_loss")]) for line in lines[1:]]
    expected, rate, best, bad = [], 1.0, math.inf, 0
    for loss in losses:
        expected += [rate] * STEPS_AN_EPOCH
        best, bad = (loss, 0) if loss < best * (1 - 1e-4) else (best, bad + 1)
        if bad > 1:
            rate, bad = rate * 0.5, 0
    assert rates == pytest.approx(expected)
    assert len(set(rates)) > 1, "it was never lowered: this would show nothing"
    assert [float(line[lines[0].index("learning_rate")]) for line in lines[1:]] == rates[::STEPS_AN_EPOCH]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_clipping_by_value_bounds_each_gradient_and_by_norm_their_whole(precision: str, seen: Any) -> None:
    by = {
        algorithm: seen(
            fit__gradient_clip_val=0.01, fit__gradient_clip_algorithm=algorithm, fit__max_epochs=1,
            trainer__precision=precision,
        ).gradients
        for algorithm in ("value", "norm")
    }  # fmt: skip
    assert len(by["value"]) == len(by["norm"]) == STEPS_AN_EPOCH - 1
    for gradient in by["value"]:
        assert gradient.abs().max() == pytest.approx(0.01)
        assert gradient.norm() > 0.02
    for gradient in by["norm"]:
        assert gradient.norm() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("system", ["classifier", "autoencoder"])
def test_muon_has_the_kernels_between_the_first_layer_and_the_last_and_adamw_all_else(
    system: str, changed: Changed, digits: Path
) -> None:
    keys = {"model.system": system, "model.network": "cnn", "optimizer.name": "muon", "optimizer.schedule": "constant"}
    params = changed({**keys, "optimizer.weight_decay": 0.3, "optimizer.momentum": 0.8})
    made: Any = build_system(params.model, read_info(digits), params.optimizer, params.loss, 0.01)
    made.trainer = SimpleNamespace(precision="32-true", gradient_clip_val=1.0)
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


def test_a_step_of_muon_is_orthogonal_and_that_of_the_others_is_adamw_s(changed: Changed, build: Build) -> None:
    params = changed({"model.network": "mlp", "model.width": 64, "optimizer.name": "muon",
                      "optimizer.schedule": "constant", "optimizer.weight_decay": 0.1})  # fmt: skip
    system: Any = build(params)
    system.trainer = SimpleNamespace(precision="32-true", gradient_clip_val=1.0)
    first, hidden, last = (module.weight for module in system.modules() if isinstance(module, nn.Linear))
    before = {weight: weight.detach().clone() for weight in (first, hidden, last)}
    for weight in system.parameters():
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    system.configure_optimizers().step()
    moved = (before[hidden] * (1 - 0.01 * 0.1) - hidden.detach()) / 0.01
    singular = torch.linalg.svdvals(moved) / (0.2 * math.sqrt(64))  # the size of a step of AdamW's (Liu et al. 2025)
    assert 0.8 < singular.mean() < 1.1
    assert singular.max() < 1.4
    assert singular.median() > 0.6
    for weight in (first, last):
        by_adamw = nn.Parameter(before[weight].clone())
        by_adamw.grad = weight.grad
        torch.optim.AdamW([by_adamw], lr=0.01, weight_decay=0.1).step()
        torch.testing.assert_close(weight, by_adamw)


def test_muon_learns_the_digits_as_well_as_adamw(fitted: Fit) -> None:
    accuracy = {}
    for name in ("adamw", "muon"):
        fitted(optimizer__name=name, model__width=8, fit__max_epochs=5)
        accuracy[name] = json.loads(Path("data/evaluation/fit.json").read_text())["val_accuracy"]
    assert accuracy["muon"] > 0.9
    assert accuracy["muon"] > accuracy["adamw"] - 0.02


def test_muon_is_tuned_as_the_others_are(changed: Changed, build: Build, digits: Path) -> None:
    params = changed({"model.network": "cnn", "model.width": 8, "optimizer.name": "muon",
                      "optimizer.schedule": "constant"})  # fmt: skip
    data = PreparedData(params.augment, 64, 64, 0, digits)
    system = build(params)
    batch = scale_batch(system, data, params.batch, params.trainer)
    assert batch.micro_batch == 64
    kept = sum(weight.nbytes for weight in system.parameters()) * 4  # what the budget counts of the weights
    optimizer: Any = _stepped(system)
    state = sum(value.nbytes for of in optimizer.state.values() for value in of.values() if isinstance(value, Tensor))
    assert state + 2 * kept / 4 <= kept
    choice, curve = find_learning_rate(
        build(params), data, BatchChoice(64, 64, 1, "auto", "cpu", 2**30, []), params.optimizer, params.trainer
    )
    assert choice.chosen_by == "find_lr"
    assert 1e-4 < choice.learning_rate < 1
    assert min(point["loss"] for point in curve) < 2


def _stepped(system: Any) -> torch.optim.Optimizer:
    system.trainer = SimpleNamespace(precision="32-true", gradient_clip_val=1.0)
    optimizer: torch.optim.Optimizer = system.configure_optimizers()
    for weight in system.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    return optimizer


def test_depthwise_kernels_which_are_no_matrices_are_left_to_adamw(changed: Changed) -> None:
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
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8))


def test_a_network_without_hidden_layers_is_refused_to_muon_in_a_line(changed: Changed) -> None:
    params = changed({"optimizer.name": "muon", "optimizer.schedule": "constant"})
    with pytest.raises(UserError, match=r"optimizer\.name = 'muon' is for the layers between .*; choose adamw"):
        configure_optimizers(Shallow(), params.optimizer, 0.01)


@pytest.mark.parametrize("schedule", ["one_cycle", "triangular"])
def test_a_climb_of_one_step_begins_low_and_is_at_its_peak_next(schedule: str, seen: Callable[..., Seen]) -> None:
    rates = seen(optimizer__schedule=schedule, optimizer__warm_up=1 / 36).rates  # of two epochs
    assert len(rates) == 36
    assert rates[0] == pytest.approx(0.01 / 25)
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert rates[1] == pytest.approx(0.01, rel=0.05)
