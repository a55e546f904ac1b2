"""Optimizers, schedules and clipping in real fits."""

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
from torch import Tensor

from refit.batches.datamodule import PreparedData
from refit.training.tuning import find_learning_rate, scale_batch
from tests.fixtures import Build, Changed, Fit, watched_by

STEPS_AN_EPOCH = 18


@pytest.fixture
def seen(fitted: Fit) -> Callable[..., "Seen"]:
    """A fit with these keys changed, observed at each optimizer step."""

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
        """The gradients of all weights at each optimizer step."""

    def on_train_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
        (optimizer,) = trainer.optimizers
        self.rates.append(optimizer.param_groups[0]["lr"])
        if not hasattr(self, "step"):
            self.step = optimizer.register_step_pre_hook(lambda optimizer, *_: self._look(optimizer))

    def _look(self, optimizer: torch.optim.Optimizer) -> None:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        # The closure, which computes and clips the gradients, runs later: these are the gradients of the previous step.
        if weights[0].grad is not None:
            self.gradients.append(torch.cat([weight.grad.flatten() for weight in weights]).clone())


def test_cosine_warm_up_rises_linearly_and_falls_along_a_cosine(seen: Any) -> None:
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


def test_plateau_lowers_the_rate_after_patience_epochs_without_a_lower_val_loss(seen: Any) -> None:
    """At this rate val_loss goes up and down. The expected rates are computed from the recorded losses."""
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
    assert len(set(rates)) > 1, "the rate was never lowered, so the test proves nothing"
    assert [float(line[lines[0].index("learning_rate")]) for line in lines[1:]] == rates[::STEPS_AN_EPOCH]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_clipping_by_value_bounds_each_gradient_and_by_norm_the_total_norm(precision: str, seen: Any) -> None:
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


def test_muon_learns_the_digits_as_well_as_adamw(fitted: Fit) -> None:
    accuracy = {}
    for name in ("adamw", "muon"):
        fitted(optimizer__name=name, model__width=8, fit__max_epochs=5)
        accuracy[name] = json.loads(Path("data/evaluation/fit.json").read_text())["val_accuracy"]
    assert accuracy["muon"] > 0.9
    assert accuracy["muon"] > accuracy["adamw"] - 0.02


def test_muon_is_tuned_like_the_other_optimizers(changed: Changed, build: Build, digits: Path) -> None:
    keys = {"model.network": "cnn", "model.width": 8, "optimizer.name": "muon", "optimizer.schedule": "constant"}
    params = changed(keys)
    data = PreparedData(params.augment, 64, 64, 0, digits)
    by_muon = {key.replace(".", "__"): value for key, value in keys.items()}
    system = build(**by_muon)
    batch, seconds_an_image = scale_batch(system, data, params.batch, params.trainer)
    assert seconds_an_image > 0
    assert batch.micro_batch == 64
    kept = sum(weight.nbytes for weight in system.parameters()) * 4  # the memory budget's estimate for the weights
    optimizer: Any = _stepped(system)
    state = sum(value.nbytes for of in optimizer.state.values() for value in of.values() if isinstance(value, Tensor))
    assert state + 2 * kept / 4 <= kept
    choice, curve = find_learning_rate(build(**by_muon), data, params.optimizer, params.trainer)
    assert choice.chosen_by == "find_lr"
    assert 1e-4 < choice.learning_rate < 1
    assert min(point["loss"] for point in curve) < 2


def _stepped(system: Any) -> torch.optim.Optimizer:
    system.trainer = SimpleNamespace(precision="32-true", gradient_clip_val=1.0, callbacks=[])
    optimizer: torch.optim.Optimizer = system.configure_optimizers()
    for weight in system.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("schedule", ["one_cycle", "triangular"])
def test_a_warm_up_of_one_step_starts_low_and_reaches_the_peak_at_the_next_step(
    schedule: str, seen: Callable[..., Seen]
) -> None:
    rates = seen(optimizer__schedule=schedule, optimizer__warm_up=1 / 36).rates  # one step of two epochs
    assert len(rates) == 36
    assert rates[0] == pytest.approx(0.01 / 25)
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert rates[1] == pytest.approx(0.01, rel=0.05)
