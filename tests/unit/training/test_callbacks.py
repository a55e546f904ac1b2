"""Callbacks of the fit stage."""

import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.demos.boring_classes import BoringModel
from torch import Tensor, nn

from refit.artifacts.prepared import read_split
from refit.batches.datamodule import PreparedData
from refit.params import Params
from refit.runtime.errors import UserError
from refit.training.callbacks import Best, History
from tests.fixtures import Build, train_on


def test_a_system_without_validation_gets_an_error_that_names_the_missing_metric(params: Params) -> None:
    history = History()
    history.rows.append({"epoch": 1, "train_loss": 1.0, "learning_rate": 0.1})
    best = Best(history, params.fit, None)
    trainer = pl.Trainer(logger=False, enable_checkpointing=False)
    lacks = "is not logged by BoringModel; it needs a validation_step that logs it as val_NAME"
    with pytest.raises(UserError, match=f"{lacks}$"):
        best.on_train_epoch_end(trainer, BoringModel())
    trainer.callback_metrics.update({"train_loss": torch.tensor(1.0), "validation_loss": torch.tensor(1.0)})
    with pytest.raises(UserError, match=f"{lacks}, and it logs validation_loss$"):
        best.on_train_epoch_end(trainer, BoringModel())


def test_a_system_without_a_training_loss_is_stopped_after_its_first_epoch() -> None:
    trainer = pl.Trainer(logger=False, enable_checkpointing=False)
    with pytest.raises(UserError, match=r"training_step of BoringModel must return the loss$"):
        History().on_train_epoch_end(trainer, BoringModel())


def test_the_progress_bar_is_drawn_periodically_and_at_each_epoch_s_last_step(
    build: Build, params: Params, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    monkeypatch.setattr(RichProgressBar, "on_train_batch_end", lambda self, *step: drawn.append(step[-1]))
    monkeypatch.setattr("refit.training.callbacks.BAR_PERIOD", 1e9)  # longer than the uptime of any machine
    data = PreparedData(params.augment, 64, 64, 0, digits)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    train_on(build(), params, data, max_epochs=2)
    last = len(read_split("train", digits).labels) // 64 - 1
    assert drawn == [0, last, last]


def test_an_epoch_s_metrics_are_computed_on_the_whole_split(build: Build, params: Params, digits: Path) -> None:
    """The last batch is smaller than the others, and there are earlier epochs."""
    system, history = build(), History()
    train_on(system, params, PreparedData(params.augment, 32, 32, 0, digits), [history], max_epochs=2)
    val = read_split("val", digits)
    with torch.inference_mode():
        logits: Tensor = system.eval().network(torch.from_numpy(val.images))
    labels = torch.from_numpy(val.labels)
    last = history.rows[-1]
    assert last["val_loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)
    assert last["val_accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item(), abs=1e-6)
    assert [row["epoch"] for row in history.rows] == [1, 2]
    assert 0 < last["train_loss"] < history.rows[0]["train_loss"]


def test_a_non_finite_validation_loss_stops_the_fit_with_a_hint(build: Build, params: Params, digits: Path) -> None:
    system = build(1e12, optimizer__name="sgd", optimizer__schedule="constant")
    with pytest.raises(UserError, match=r"not finite after epoch \d.*lower optimizer\.learning_rate"):
        train_on(system, params, PreparedData(params.augment, 64, 64, 0, digits), [History()], max_epochs=5)
