"""`make sanity` distinguishes working systems from broken ones, and names a likely cause."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from refit.batches.datamodule import Batch
from refit.commands import sanity
from refit.params import Params
from refit.runtime.errors import UserError
from refit.systems.build import build_system
from refit.systems.classifier import Classifier
from tests.fixtures import Changed

Broken = Callable[[Callable[[pl.LightningModule], None]], None]
QUICK = {"optimizer.fallback_learning_rate": 0.01, "model.dropout": 0.0}


@pytest.fixture
def params(changed: Changed) -> Params:
    return changed(QUICK)


@pytest.fixture(autouse=True)
def _on_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sanity, "SECONDS", 600)


@pytest.fixture
def broken(prepared_workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Broken:
    """Break the system before training, and shorten the training."""

    def use(break_it: Callable[[pl.LightningModule], None]) -> None:
        def build(*args: Any) -> pl.LightningModule:
            system = build_system(*args)
            break_it(system)
            return system

        monkeypatch.setattr(sanity, "build_system", build)
        monkeypatch.setattr(sanity, "STEPS", 60)

    return use


@pytest.mark.parametrize(("system", "train_size"), [("classifier", None), ("classifier", 6), ("autoencoder", None)])
@pytest.mark.usefixtures("prepared_workspace")
def test_a_sound_system_memorises_a_few_images(
    system: str, train_size: int | None, changed: Changed, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {"model.system": system, "model.embedding": 64, "model.network": "cnn", "augment.train_size": train_size}
    sanity.main(changed(QUICK | keys))
    *curve, verdict = capsys.readouterr().out.splitlines()
    assert verdict.startswith("memorised 32 images in ")
    assert 10 <= int(verdict.split()[-2]) < sanity.STEPS, "it stops once the images are memorised"
    assert len(curve) >= 2
    assert all(line.startswith("step ") for line in curve)


def test_a_frozen_system_is_detected(broken: Broken, params: Params) -> None:
    def freeze(system: pl.LightningModule) -> None:
        system.requires_grad_(False)

    broken(freeze)
    with pytest.raises(UserError, match="all weights are frozen"):
        sanity.main(params)


def test_a_network_without_gradients_is_detected_and_its_weights_are_named(broken: Broken, params: Params) -> None:
    def detach(system: pl.LightningModule) -> None:
        assert isinstance(system, Classifier)
        system.bias = torch.nn.Parameter(torch.zeros(10))
        system.network.register_forward_hook(lambda _module, _inputs, logits: logits.detach() * 0 + system.bias)

    broken(detach)
    with pytest.raises(UserError, match=r"6 weights never changed \(network\.1\.1\.weight, .*frozen"):
        sanity.main(params)


def test_labels_shuffled_at_each_step_are_detected(
    broken: Broken, params: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    def shuffle(system: pl.LightningModule) -> None:
        step, random = system.training_step, np.random.default_rng(0)

        def shuffled(batch: Batch, batch_idx: int) -> Tensor:
            labels = batch.labels[torch.from_numpy(random.permutation(len(batch.labels)))]
            loss = step(batch._replace(labels=labels), batch_idx)
            assert isinstance(loss, Tensor)
            return loss

        system.training_step = shuffled  # type: ignore[method-assign]

    broken(shuffle)
    with pytest.raises(UserError, match="could not memorise 32 images in 60 steps\nlikely: the loss is that of guess"):
        sanity.main(params)
    assert capsys.readouterr().out.count("val_loss") >= sanity.SHOWN


@pytest.mark.usefixtures("prepared_workspace")
def test_a_too_high_learning_rate_is_named_as_the_cause(changed: Changed) -> None:
    with pytest.raises(UserError, match="learning rate of 1e\\+12"):
        sanity.main(changed({"optimizer.name": "sgd", "optimizer.learning_rate": 1e12, "fit.gradient_clip_val": None}))


def test_a_system_too_slow_to_judge_ends_in_time(
    broken: Broken, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(system: pl.LightningModule) -> None:
        step = system.training_step

        def slept(*args: Any) -> Any:
            time.sleep(0.3)
            return step(*args)

        system.training_step = slept  # type: ignore[method-assign]

    broken(slow)
    monkeypatch.setattr(sanity, "SECONDS", 1)
    with pytest.raises(UserError, match="1 s are too short for 5 steps"):
        sanity.main(params)
