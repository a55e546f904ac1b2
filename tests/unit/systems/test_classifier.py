"""The classifier: its optimizer, its metrics and its learning rate schedule."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from refit.artifacts.prepared import read_info, read_split
from refit.batches.datamodule import Batch, PreparedData, WeightedBatch
from refit.params import LossParams, OptimizerParams, Params
from refit.runtime.errors import UserError
from refit.systems.build import build_system
from refit.systems.classifier import Classifier
from refit.systems.networks import Whiten
from tests.fixtures import Build, model_params, train_on


def batches(sizes: Sequence[int], seed: int = 0) -> list[Batch]:
    """Random images like digits, the same for every division into batches."""
    random = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (sum(sizes), 1, 8, 8), dtype=torch.uint8, generator=random)
    labels = torch.randint(0, 10, (sum(sizes),), generator=random)

    def cut(whole: Tensor) -> tuple[Tensor, ...]:
        return torch.split(whole, list(sizes))

    return [Batch(*both) for both in zip(cut(images), cut(labels), strict=True)]


def test_an_image_of_weight_2_has_the_gradient_of_the_image_twice(build: Build) -> None:
    (batch,) = batches([3])
    weights = torch.tensor([2.0, 1.0, 1.0])
    twice = Batch(*(torch.cat((part[:1], part)) for part in batch))
    gradients = []
    for one in (WeightedBatch(*batch, weights / weights.mean()), twice):  # the mean is 1, as in the prepared data
        system = build(model__network="mlp", model__dropout=0.0)
        system.training_step(one, 0).backward()
        gradients.append([weight.grad for weight in system.parameters()])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("network", ["mlp", "cnn", "resnet9", "airbench"])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_weight_decay_applies_to_weights_but_not_to_norms_and_biases(name: str, network: str, build: Build) -> None:
    system = build(
        model__network=network, model__width=4, optimizer__name=name, optimizer__weight_decay=0.3,
        optimizer__schedule="constant",
    )  # fmt: skip
    system.trainer = SimpleNamespace(precision="32-true", gradient_clip_val=1.0, callbacks=[])
    optimizer: Any = system.configure_optimizers()
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups
             for p in group["params"]}  # fmt: skip
    assert len(decay) == len(list(system.parameters()))
    for module in system.network.modules():
        for kind, weight in module.named_parameters(recurse=False):
            decays = kind == "weight" and isinstance(module, nn.Conv2d | nn.Linear)
            assert decay[id(weight)] == (0.3 if decays else 0.0)


@pytest.mark.parametrize(("name", "expected"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_the_chosen_optimizer_gets_its_settings(name: str, expected: Any, build: Build) -> None:
    system = build(0.02, optimizer__name=name, optimizer__momentum=0.8, optimizer__schedule="constant")
    system.trainer = SimpleNamespace(precision="32-true", gradient_clip_val=1.0, callbacks=[])
    optimizer: Any = system.configure_optimizers()
    assert isinstance(optimizer, expected)
    group = optimizer.param_groups[0]
    assert group["lr"] == 0.02
    assert (group["betas"][0] if name == "adamw" else group["momentum"]) == 0.8
    assert group["fused"] is True
    system.trainer = SimpleNamespace(
        precision="16-mixed", gradient_clip_val=1.0, callbacks=[]
    )  # Lightning cannot clip if fused
    assert system.configure_optimizers().param_groups[0]["fused"] is False
    system.trainer = SimpleNamespace(precision="bf16-mixed", gradient_clip_val=1.0, callbacks=[])
    assert system.configure_optimizers().param_groups[0]["fused"] is True
    assert group.get("nesterov", True)


class Rates(Callback):
    """The learning rate of each optimizer step."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("schedule", ["one_cycle", "triangular", "cosine", "constant"])
def test_the_schedule_spans_exactly_the_optimizer_steps(
    schedule: str, accumulate: int, build: Build, params: Params, digits: Path
) -> None:
    system, rates = build(0.01, optimizer__schedule=schedule), Rates()
    data = PreparedData(params.augment, 64 // accumulate, 64, 0, digits)
    train_on(system, params, data, [rates], max_epochs=3, accumulate_grad_batches=accumulate)
    assert len(rates.rates) == 3 * (len(read_split("train", digits).labels) // 64)
    peak = max(rates.rates)
    assert peak == pytest.approx(0.01, rel=0.02)
    if schedule == "constant":
        assert set(rates.rates) == {0.01}
    else:
        assert rates.rates[-1] < 0.01 * peak
        place = rates.rates.index(peak) / len(rates.rates)
        assert place == (0 if schedule == "cosine" else pytest.approx(0.3, abs=0.05))


@pytest.mark.parametrize(("schedule", "straight"), [("one_cycle", False), ("triangular", True)])
def test_the_rate_rises_during_the_warm_up_and_triangular_is_linear(
    schedule: str, straight: bool, build: Build, params: Params, digits: Path
) -> None:
    system, rates = build(0.01, optimizer__schedule=schedule, optimizer__warm_up=0.6), Rates()
    train_on(system, params, PreparedData(params.augment, 64, 64, 0, digits), [rates], max_epochs=3)
    peak = rates.rates.index(max(rates.rates))
    assert peak / len(rates.rates) == pytest.approx(0.6, abs=0.05)
    climb = torch.tensor(rates.rates[:peak]).diff()
    assert bool(climb.max() < 1.01 * climb.min()) == straight


def test_one_cycle_starts_low(build: Build, params: Params, digits: Path) -> None:
    system, rates = build(0.01, optimizer__schedule="one_cycle"), Rates()
    train_on(system, params, PreparedData(params.augment, 64, 64, 0, digits), [rates])
    assert rates.rates[0] < 0.1 * max(rates.rates)


def test_two_accumulated_micro_batches_give_the_step_of_one_batch(build: Build, params: Params) -> None:
    """For a network without batch norm and dropout, in which images do not affect each other."""
    keys = {"model__dropout": 0.0, "optimizer__name": "sgd", "optimizer__schedule": "constant"}
    whole, micro, without = build(0.1, **keys), build(0.1, **keys), build(0.1, **keys)
    train_on(whole, params, batches([64, 64]))
    train_on(micro, params, batches([32] * 4), accumulate_grad_batches=2)
    train_on(without, params, batches([32] * 4))
    for expected, weight in zip(whole.parameters(), micro.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=1e-5, atol=1e-7)
    first = next(iter(whole.parameters()))
    assert (next(iter(without.parameters())) - first).abs().max() > 1e-3


def test_forward_is_pure_inference(build: Build) -> None:
    system = build().eval()
    (batch,) = batches([5])
    before = {name: value.clone() for name, value in system.state_dict().items()}
    probabilities = system(batch.images)
    assert (probabilities.shape, probabilities.dtype) == ((5, 10), torch.float32)
    torch.testing.assert_close(probabilities, system.network(batch.images).softmax(1))
    torch.testing.assert_close(system(batch.images[2:3]), probabilities[2:3])
    assert all(torch.equal(value, before[name]) for name, value in system.state_dict().items())


def test_with_test_time_flip_an_image_and_its_mirror_image_get_the_same_prediction(build: Build) -> None:
    (batch,) = batches([5])
    images, mirrored = batch.images, batch.images.flip(3)
    plain, flipping = build().eval(), build(model__test_time_flip=True).eval()
    assert not torch.allclose(plain(images), plain(mirrored))
    torch.testing.assert_close(flipping(images), flipping(mirrored))
    both = (plain.network(images) + plain.network(mirrored)) / 2
    torch.testing.assert_close(flipping(images), both.softmax(1))
    torch.testing.assert_close(flipping.network(images), plain.network(images))


def test_label_smoothing_affects_only_the_training_loss(build: Build, params: Params) -> None:
    (batch,) = batches([64])
    for smoothing in (0.0, 0.2):
        system = build(model__dropout=0.0, loss__label_smoothing=smoothing)
        loss = system.training_step(batch, 0)
        logits = system.network(batch.images)
        torch.testing.assert_close(loss, nn.functional.cross_entropy(logits, batch.labels, label_smoothing=smoothing))
        system.validation_step(batch, 0)
        torch.testing.assert_close(
            system.val_metrics["loss"].compute(), nn.functional.cross_entropy(logits, batch.labels)
        )


def test_a_fit_computes_the_whitening_from_its_training_images(build: Build, params: Params, digits: Path) -> None:
    system = build(model__network="airbench", model__width=8)
    train_on(system, params, PreparedData(params.augment, 64, 64, 0, digits))
    expected = Whiten(1)
    expected.fit(read_split("train", digits).images, read_info(digits).std)
    torch.testing.assert_close(system.network[1][0].filters, expected.filters)


def test_a_fit_keeps_the_whitening_of_loaded_weights(build: Build, params: Params, digits: Path) -> None:
    system = build(model__network="airbench", model__width=8)
    loaded = 2 * system.network[1][0].filters
    system.network[1][0].filters.copy_(loaded)
    train_on(system, params, PreparedData(params.augment, 64, 64, 0, digits))
    assert torch.equal(system.network[1][0].filters, loaded)


def test_class_weights_affect_only_the_training_loss(build: Build) -> None:
    (batch,) = batches([64])
    weights = [0.5 * (1 + number) for number in range(10)]
    system = build(model__dropout=0.0, loss__class_weights=weights, loss__label_smoothing=0.1)
    loss = system.training_step(batch, 0)
    logits = system.network(batch.images)
    losses = nn.functional.cross_entropy(
        logits, batch.labels, torch.tensor(weights), reduction="none", label_smoothing=0.1
    )
    torch.testing.assert_close(loss, losses.sum() / 64)
    system.validation_step(batch, 0)
    torch.testing.assert_close(system.val_metrics["loss"].compute(), nn.functional.cross_entropy(logits, batch.labels))
    assert not any("class_weights" in name for name in system.state_dict())


def test_balanced_classes_have_the_same_total_weight(
    build: Build, params: Params, digits: Path, tmp_path: Path
) -> None:
    for file in digits.iterdir():
        shutil.copy(file, tmp_path)
    split = read_split("train", digits)
    kept = np.flatnonzero((split.labels > 4) | (np.arange(len(split.labels)) % 5 == 0))  # a fifth of classes 0 to 4
    np.save(tmp_path / "train_images.npy", split.images[kept])
    np.save(tmp_path / "train_labels.npy", split.labels[kept])
    system = build(loss__class_weights="balanced")
    train_on(system, params, PreparedData(params.augment, 64, 64, 0, tmp_path))
    images = torch.from_numpy(split.labels[kept]).bincount()
    assert images.max() > 4 * images.min()
    torch.testing.assert_close(system.class_weights * images, torch.full((10,), len(kept) / 10))


def test_balanced_class_weights_predict_rare_classes_more_often(
    build: Build, params: Params, digits: Path, tmp_path: Path
) -> None:
    for file in digits.iterdir():
        shutil.copy(file, tmp_path)
    split, val = read_split("train", digits), read_split("val", digits)
    kept = np.flatnonzero((split.labels > 4) | (np.arange(len(split.labels)) % 20 == 0))
    np.save(tmp_path / "train_images.npy", split.images[kept])
    np.save(tmp_path / "train_labels.npy", split.labels[kept])
    found = {}
    for weights in ("none", "balanced"):
        system = build(loss__class_weights=weights)
        train_on(system, params, PreparedData(params.augment, 32, 32, 0, tmp_path), max_epochs=5)
        with torch.inference_mode():
            predicted = system.eval()(torch.from_numpy(val.images)).argmax(1)
        found[weights] = (predicted < 5).sum().item()
    assert found["balanced"] > 1.2 * found["none"]


def test_weighted_micro_batches_give_the_step_of_one_batch(build: Build, params: Params) -> None:
    weights = [0.1 + number for number in range(10)]
    keys = {"model__dropout": 0.0, "optimizer__name": "sgd", "optimizer__schedule": "constant",
            "loss__class_weights": weights}  # fmt: skip
    whole, micro = build(0.1, **keys), build(0.1, **keys)
    train_on(whole, params, batches([64, 64]))
    train_on(micro, params, batches([32] * 4), accumulate_grad_batches=2)
    for expected, weight in zip(whole.parameters(), micro.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=1e-5, atol=1e-7)


def test_a_wrong_number_of_class_weights_is_refused(build: Build) -> None:
    with pytest.raises(UserError, match=r"loss\.class_weights has 2 weights for 10 classes; expected one per class"):
        build(loss__class_weights=[1.0, 2.0])


def test_a_batch_with_a_nan_loss_makes_the_mean_loss_nan(build: Build) -> None:
    system = build().eval()
    (batch,) = batches([8])
    bias = [weight for weight in system.parameters() if weight.ndim == 1][-1].data
    bias += float("nan")
    system.validation_step(batch, 0)
    bias.zero_()
    system.validation_step(batch, 1)
    assert system.val_metrics["loss"].compute().isnan()


def test_a_classifier_for_inference_needs_no_training_parameters(digits: Path) -> None:
    system = build_system(model_params(network="mlp", width=8, dropout=None, test_time_flip=False), read_info(digits))
    assert isinstance(system, Classifier)
    assert (system.optimizer_params, system.label_smoothing, system.class_weights) == (None, 0.0, None)
    assert system(batches([3])[0].images).shape == (3, 10)


def test_the_training_parameters_reach_the_classifier(digits: Path, params: Params) -> None:
    loss = LossParams(label_smoothing=0.25, class_weights="none")
    system = build_system(params.model, read_info(digits), params.optimizer, loss, 0.5)
    assert isinstance(system, Classifier)
    assert isinstance(system.optimizer_params, OptimizerParams)
    assert (system.label_smoothing, system.learning_rate) == (0.25, 0.5)
