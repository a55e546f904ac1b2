"""Averaged weights: which weights are averaged, and that the average is validated and saved."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from refit.artifacts.prepared import read_split
from refit.inference.predictor import read_model
from refit.params import FitParams
from tests.fixtures import Fit, watched_by

SWA: dict[str, Any] = {"fit__averaging": "swa", "fit__swa_start": 0.5, "fit__max_epochs": 4, "learning_rate": 0.02,
                       "optimizer__schedule": "constant"}  # fmt: skip
PLAIN = {key: value for key, value in SWA.items() if key not in ("fit__averaging", "fit__swa_start")}


class Notes(Callback):
    """The weights at the end of each step, the labels of each batch, and the random state at the end of the fit."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []
        self.labels: list[int] = []
        self.drawn = 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.steps.append({name: value.clone() for name, value in pl_module.state_dict().items()})
        self.labels.append(int(batch.labels.sum()))

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.drawn = torch.rand(()).item() + np.random.rand()


@pytest.fixture
def noted(fitted: Fit) -> Any:
    def run(**keys: Any) -> tuple[dict[str, Tensor], Notes]:
        notes = Notes()
        with watched_by(notes):
            return fitted(**keys), notes

    return run


def history() -> list[dict[str, float]]:
    header, *rows = Path("data/evaluation/history.csv").read_text().splitlines()
    return [dict(zip(header.split(","), map(float, row.split(",")), strict=True)) for row in rows]


def validated(system: nn.Module) -> float:
    val = read_split("val")
    with torch.inference_mode():
        logits: Tensor = system.eval().network(torch.from_numpy(val.images))  # type: ignore[operator]
    return nn.functional.cross_entropy(logits, torch.from_numpy(val.labels)).item()


def test_the_saved_ema_weights_are_the_validated_ones(noted: Any) -> None:
    """The average over one epoch of recorded steps is computed here again, including batch norm's statistics."""
    kept, notes = noted(fit__averaging="ema", fit__ema_decay=0.8, fit__max_epochs=1)
    for name in kept:
        if kept[name].is_floating_point():
            average = notes.steps[0][name]
            for number, step in enumerate(notes.steps[1:], start=1):
                decay = min(0.8, (1 + number) / (10 + number))
                average = decay * average + (1 - decay) * step[name]
            torch.testing.assert_close(kept[name], average)
    assert any(not torch.equal(kept[name], notes.steps[-1][name]) for name in kept)

    told = json.loads(Path("data/evaluation/fit.json").read_text())
    val = read_split("val")
    system, _ = read_model()
    with torch.inference_mode():
        right = system.eval()(torch.from_numpy(val.images)).argmax(1) == torch.from_numpy(val.labels)
    assert right.float().mean().item() == pytest.approx(told["val_accuracy"], abs=1e-6)


@pytest.mark.parametrize("micro_batch", [64, 32])
def test_swa_saves_the_mean_of_the_weights_at_the_ends_of_its_epochs(micro_batch: int, noted: Any) -> None:
    kept, notes = noted(micro_batch=micro_batch, **SWA)
    steps = len(notes.steps) // 4
    ends = [notes.steps[(epoch + 1) * steps - 1] for epoch in range(4)]
    best = json.loads(Path("data/evaluation/fit.json").read_text())["epoch"]
    assert best == 4, "the mean must be over more than one epoch's weights"
    parameters = {name for name, _ in read_model()[0].named_parameters()}
    assert parameters
    for name in parameters:
        torch.testing.assert_close(kept[name], (ends[2][name] + ends[3][name]) / 2)
        assert not torch.allclose(kept[name], ends[3][name])


def test_an_epoch_before_swa_is_validated_without_averaging_and_is_never_the_best(
    noted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With this monitor mode the first epoch would be the best of a fit without SWA."""
    monkeypatch.setattr(FitParams, "monitor_mode", "max")
    noted(**PLAIN)
    plain = history()
    assert json.loads(Path("data/evaluation/fit.json").read_text())["epoch"] == 1
    noted(**SWA)
    swa = history()
    assert json.loads(Path("data/evaluation/fit.json").read_text())["epoch"] == 3
    assert swa[:2] == plain[:2]
    assert swa[2]["train_loss"] == plain[2]["train_loss"]
    assert swa[3]["val_loss"] != plain[3]["val_loss"]


@pytest.mark.parametrize("system", ["classifier", "autoencoder"])
def test_swa_recomputes_batch_norm_statistics_from_the_training_images_with_averaged_weights(
    system: str, noted: Any
) -> None:
    """For every norm, also in an autoencoder's decoder. Expected are the statistics of its input over all images."""
    kept, notes = noted(model__system=system, model__width=8, model__dropout=0.0, **SWA)
    model, _ = read_model()
    told = json.loads(Path("data/evaluation/fit.json").read_text())
    if system == "classifier":
        assert validated(model) == pytest.approx(told["val_loss"], rel=1e-4)
    norms = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.BatchNorm2d)}
    assert len(norms) > 5
    images = torch.from_numpy(read_split("train").images)
    off, off_of_last = [], []
    inputs: dict[str, Tensor] = {}
    for name, layer in norms.items():
        layer.register_forward_pre_hook(lambda _, args, name=name: inputs.__setitem__(name, args[0]))
        layer.train()  # as in SWA's pass, the norms before it use the statistics of the batch
    with torch.no_grad():
        embedded = model.network(images)  # type: ignore[operator]
        if system == "autoencoder":
            model.decoder(embedded)  # type: ignore[operator]
    for name in norms:
        mean = inputs[name].mean(dim=(0, 2, 3))
        spread = inputs[name].var(dim=(0, 2, 3)).sqrt()
        off.append(((kept[f"{name}.running_mean"] - mean) / spread).abs().mean())
        off_of_last.append(((notes.steps[-1][f"{name}.running_mean"] - mean) / spread).abs().mean())
        torch.testing.assert_close(kept[f"{name}.running_var"].sqrt(), spread, rtol=0.1, atol=0.02)
    assert torch.stack(off).mean() < 0.03
    assert torch.stack(off_of_last).mean() > 2 * torch.stack(off).mean()


def test_swa_s_batch_norm_pass_changes_neither_batches_nor_random_numbers(noted: Any) -> None:
    """The weights between two averages are those of a fit without SWA."""
    keys = {"model__dropout": 0.3, "augment__shift": 1}
    _, plain = noted(**PLAIN, **keys)
    _, swa = noted(**SWA, **keys)
    assert plain.labels == swa.labels
    assert plain.drawn == swa.drawn
    assert all(torch.equal(one[name], other[name]) for one, other in zip(plain.steps, swa.steps, strict=True)
               for name in one)  # fmt: skip


def test_swa_in_bfloat16_validates_the_weights_it_saves(noted: Any) -> None:
    noted(**SWA, trainer__precision="bf16-mixed")
    told = json.loads(Path("data/evaluation/fit.json").read_text())
    assert validated(read_model()[0]) == pytest.approx(told["val_loss"], rel=0.05)


@pytest.mark.parametrize("averaging", ["ema", "swa"])
def test_averaged_weights_are_bitwise_reproducible(averaging: str, fitted: Fit) -> None:
    first, second = (fitted(fit__averaging=averaging) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
