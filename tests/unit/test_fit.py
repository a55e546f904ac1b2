"""What `fit` keeps of a training: the best epoch, averaged or compiled where it was asked to."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from refit.data.prepared import read_split
from refit.model_file import read_model
from refit.training import train
from refit.training.run_logger import RunLogger
from refit.training.trainer import make_trainer
from tests.unit.conftest import Fit

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType"),  # MLflow's, of a function of its own
]


def test_the_average_that_is_kept_is_the_one_that_was_validated(fitted: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    """One epoch of steps, each noted; their average by hand, batch norm's statistics and all."""
    steps: list[dict[str, Tensor]] = []

    class Notes(Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
            steps.append({name: value.clone() for name, value in pl_module.state_dict().items()})

    def noting(*args: Any, callbacks: list[Callback], **options: Any) -> pl.Trainer:
        return make_trainer(*args, callbacks=[Notes(), *callbacks], **options)

    monkeypatch.setattr(train, "make_trainer", noting)
    kept = fitted(fit__ema_decay=0.8, fit__max_epochs=1)
    for name in kept:
        if kept[name].is_floating_point():
            average = steps[0][name]
            for number, step in enumerate(steps[1:], start=1):
                decay = min(0.8, (1 + number) / (10 + number))
                average = decay * average + (1 - decay) * step[name]
            torch.testing.assert_close(kept[name], average)
    assert any(not torch.equal(kept[name], steps[-1][name]) for name in kept)

    told = json.loads(Path("data/evaluation/fit.json").read_text())
    val = read_split("val")
    system, _ = read_model()
    with torch.inference_mode():
        right = system.eval()(torch.from_numpy(val.images)).argmax(1) == torch.from_numpy(val.labels)
    assert right.float().mean().item() == pytest.approx(told["val_accuracy"], abs=1e-6)


def test_an_average_is_the_same_bits_each_time(fitted: Fit) -> None:
    first, second = fitted(fit__ema_decay=0.9), fitted(fit__ema_decay=0.9)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_is_compiled_and_learns_what_the_plain_one_does(
    fitted: Fit, capfd: pytest.CaptureFixture[str]
) -> None:
    plain = fitted(model__dropout=0.0)
    torch._dynamo.utils.counters.clear()
    compiled = fitted(model__dropout=0.0, trainer__compile="default")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert plain.keys() == compiled.keys()
    for name in plain:
        torch.testing.assert_close(compiled[name], plain[name], rtol=0.02, atol=0.02)


def test_the_run_is_told_of_each_epoch_s_time_memory_and_gradient(fitted: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    """The norm is that of the last step's gradients, by hand, before they are clipped."""
    norms: list[float] = []

    class Notes(Callback):
        def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
            gradients = [weight.grad.flatten() for weight in pl_module.parameters() if weight.grad is not None]
            norms.append(torch.cat(gradients).norm().item())

    def noting(*args: Any, callbacks: list[Callback], **options: Any) -> pl.Trainer:
        return make_trainer(*args, callbacks=[Notes(), *callbacks], **options)

    monkeypatch.setattr(train, "make_trainer", noting)
    told: list[dict[str, float]] = []
    monkeypatch.setattr(RunLogger, "log_metrics", lambda _, metrics, step=None: told.append(dict(metrics)))
    started = time.perf_counter()
    fitted(fit__max_epochs=2, fit__gradient_clip_val=0.01)
    passed = time.perf_counter() - started
    facts = [metrics for metrics in told if "epoch_seconds" in metrics]
    steps = len(norms) // 2
    assert [metrics["gradient_norm"] for metrics in facts] == pytest.approx([norms[steps - 1], norms[-1]])
    assert norms[-1] > 0.01
    assert 0 < sum(metrics["epoch_seconds"] for metrics in facts) < passed
    assert all(0.1 < metrics["memory_gib"] < 24 for metrics in facts)
