"""Whole fits: the best epoch, a compiled network, other arithmetic, logged measurements and early stopping."""

import csv
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from refit.artifacts.choices import read_batch
from refit.artifacts.metrics import changed_params
from refit.params import Params
from tests.fixtures import Fit, run_test, watched_by


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_is_compiled_and_trains_like_the_uncompiled_one(fitted: Fit) -> None:
    keys = {"model__network": "mlp", "model__dropout": 0.0, "fit__max_epochs": 1}
    plain = fitted(**keys)
    torch._dynamo.utils.counters.clear()
    compiled = fitted(**keys, trainer__compile="default")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert plain.keys() == compiled.keys()
    for name in plain:
        torch.testing.assert_close(compiled[name], plain[name], rtol=0.02, atol=0.02)


def test_other_arithmetic_gives_an_accuracy_within_the_confidence_interval(fitted: Fit) -> None:
    """bfloat16 and another number of threads simulate other hardware."""

    def tested(**keys: object) -> tuple[dict[str, Tensor], dict[str, float]]:
        weights = fitted(fit__max_epochs=8, model__network="mlp", model__width=64, **keys)
        run_test(report=False)
        return weights, json.loads(Path("data/evaluation/test.json").read_text())

    weights, one = tested()
    other_weights, other = tested(trainer__precision="bf16-mixed", trainer__threads=2)
    assert not all(torch.equal(weights[name], other_weights[name]) for name in weights)
    assert one["accuracy_low"] <= other["accuracy"] <= one["accuracy_high"]
    assert other["accuracy_low"] <= one["accuracy"] <= other["accuracy_high"]
    assert one["accuracy"] > 0.9


def test_the_loggers_get_each_epoch_s_time_memory_and_gradient_norm(fitted: Fit) -> None:
    """The expected norm is that of the last step's gradients before clipping, computed here again."""
    norms: list[float] = []

    class Notes(Callback):
        def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
            gradients = [weight.grad.flatten() for weight in pl_module.parameters() if weight.grad is not None]
            norms.append(torch.cat(gradients).norm().item())

    started = time.perf_counter()
    with watched_by(Notes()):
        fitted(tracking__loggers=["csv"], fit__max_epochs=2, fit__gradient_clip_val=0.01)
    passed = time.perf_counter() - started
    (table,) = Path("data/logs").glob("*/csv/metrics.csv")
    facts = list(csv.DictReader(table.read_text().splitlines()))
    steps = len(norms) // 2
    assert [float(row["gradient_norm"]) for row in facts] == pytest.approx([norms[steps - 1], norms[-1]])
    assert norms[-1] > 0.01
    assert 0 < sum(float(row["epoch_seconds"]) for row in facts) < passed
    assert all(0.1 < float(row["memory_gib"]) < 24 for row in facts)


def test_dvc_exp_show_has_few_columns_and_one_of_them_lists_the_changed_params(fitted: Fit) -> None:
    fitted(fit__max_epochs=1, fit__monitor="val_accuracy")
    best = json.loads(Path("data/evaluation/fit.json").read_text())
    shown = json.loads(Path("data/metrics/fit.json").read_text())
    assert list(shown) == ["val_acc", "val_loss", "changed_params"]
    assert [shown["val_acc"], shown["val_loss"]] == [best["val_accuracy"], best["val_loss"]]
    told = {"width=4", "max_epochs=1", "monitor=val_accuracy", "batch.size=64"}
    assert told <= set(shown["changed_params"].split())
    assert changed_params(Params().only("fit"), replace(read_batch(), chosen_by="auto")) == ""


@pytest.mark.parametrize("patience", [1, 3])
def test_a_fit_stops_after_patience_epochs_without_improvement(patience: int, fitted: Fit) -> None:
    fitted(learning_rate=0.5, optimizer__schedule="constant", fit__max_epochs=30, fit__patience=patience)
    told = json.loads(Path("data/evaluation/fit.json").read_text())
    assert told["epochs"] == told["epoch"] + patience < 30
