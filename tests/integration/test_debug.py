"""The debug section: how much runs, and that the result is never taken for a real model."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from mlflow import MlflowClient
from pytorch_lightning.callbacks import Callback

from refit.artifacts.checked import stage_params
from refit.artifacts.model import model_sha256
from refit.artifacts.prepared import read_split
from refit.batches.datamodule import Batch
from refit.commands import register
from refit.reports import summary
from refit.runtime.errors import UserError
from refit.systems.classifier import Classifier
from refit.training import divergence
from stages import predict
from tests.fixtures import Fit, run_test, watched_by

STEPS_AN_EPOCH = 1169 // 64


class Steps(Callback):
    """The steps and validations that ran."""

    def __init__(self) -> None:
        self.trained: list[int] = []
        self.shown: list[torch.Tensor] = []
        self.validated = 0
        self.validations_after: list[int] = []
        self.anomalies_detected = False

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch,
                           batch_idx: int) -> None:  # fmt: skip
        self.trained.append(trainer.current_epoch)
        self.shown.append(batch.images)
        self.anomalies_detected = torch.is_anomaly_enabled()

    def on_validation_batch_end(self, *args: Any) -> None:
        self.validated += 1

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.validations_after.append(len(self.trained))


@pytest.fixture
def watched(fitted: Fit) -> Callable[..., Steps]:
    def run(**keys: object) -> Steps:
        steps = Steps()
        with watched_by(steps):
            fitted(**{"model__network": "mlp", "model__width": 16} | keys)
        return steps

    return run


def run_test_and_predict() -> None:
    run_test()
    predict.main(stage_params("predict"))


def told(name: str) -> Any:
    return json.loads(Path("data", name).read_text(encoding="utf-8"))


def test_a_fast_dev_run_takes_that_many_batches_of_each_split_once(watched: Callable[..., Steps]) -> None:
    steps = watched(debug__fast_dev_run=2)
    assert (steps.trained, steps.validated) == ([0, 0], 2)
    run_test_and_predict()
    for table in ("evaluation/outcomes.csv", "predictions/predictions.csv"):
        with Path("data", table).open(newline="") as file:
            assert len(list(csv.DictReader(file))) == 2 * 2 * 64, table


def test_a_limit_is_a_fraction_or_a_number_of_batches(watched: Callable[..., Steps]) -> None:
    steps = watched(debug__limit_train_batches=0.5, debug__limit_val_batches=1)
    assert steps.trained == [0] * (STEPS_AN_EPOCH // 2) + [1] * (STEPS_AN_EPOCH // 2)
    assert steps.validated == 2


def test_overfit_batches_trains_and_validates_on_the_same_unaugmented_images(watched: Callable[..., Steps]) -> None:
    steps = watched(
        debug__overfit_batches=1, fit__max_epochs=60, augment__shift=2, augment__flip=True, model__dropout=0.0
    )
    assert len(steps.trained) == 60
    seen = [{image.numpy().tobytes() for image in images} for images in steps.shown]
    assert seen[0] == seen[-1]
    assert seen[0] <= {image.tobytes() for image in read_split("train").images}
    assert told("evaluation/fit.json")["val_accuracy"] == 1.0  # not possible in 60 steps on other validation images


def test_validation_can_run_within_an_epoch(watched: Callable[..., Steps]) -> None:
    steps = watched(debug__val_check_interval=6, fit__max_epochs=1)
    assert steps.validations_after == [6, 12, 18]
    whole = told("evaluation/fit.json")
    watched(fit__max_epochs=1)
    assert told("evaluation/fit.json") == whole  # training metrics are also those of the whole epoch


def test_anomaly_detection_is_on_only_if_requested(watched: Callable[..., Steps]) -> None:
    assert not watched(fit__max_epochs=1).anomalies_detected
    assert watched(fit__max_epochs=1, debug__detect_anomaly=True).anomalies_detected


@pytest.mark.parametrize(
    ("profiler", "knows"),
    [("simple", "run_training_batch"), ("advanced", "training_step"), ("pytorch", "aten::")],
)
@pytest.mark.filterwarnings("ignore:.*profiler")
def test_a_profile_is_printed_and_saved(
    profiler: str, knows: str, watched: Callable[..., Steps], capfd: pytest.CaptureFixture[str]
) -> None:
    watched(fit__max_epochs=1, debug__profiler=profiler)
    (report,) = Path("data/logs/profile", profiler).glob("*.txt")
    assert knows in report.read_text()
    shown = capfd.readouterr().out
    assert f"profile: {report}" in shown
    assert report.read_text().splitlines()[3] in shown
    assert "debug" not in told("evaluation/fit.json")  # a profiled run is a complete run


@pytest.mark.filterwarnings("ignore:.*LeafSpec")
@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType")  # from a function in MLflow
@pytest.mark.usefixtures("fitted_in_mlflow")
def test_a_debug_run_is_marked_everywhere_and_never_registered(watched: Callable[..., Steps]) -> None:
    watched(debug__limit_train_batches=1, tracking__loggers=["mlflow"])
    run_test_and_predict()
    for output in ("model/model.json", "evaluation/fit.json", "evaluation/test.json", "predictions/summary.json"):
        assert told(output)["debug"] is True, output
    assert "A debug run" in Path("data/evaluation/report.html").read_text(encoding="utf-8")
    assert "DEBUG RUN" in "\n".join(summary.as_lines(summary.read_facts()))
    (run,) = MlflowClient().search_runs(["1"])
    assert run.data.tags["debug"] == "true"
    with pytest.raises(UserError, match="is a debug run, whose model cannot be registered"):
        register.main("refit")


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (
            {"debug__limit_val_batches": 0.1},
            "the debug section does not fit this data: You requested to check 0.1 of",
        ),
        (
            {"debug__val_check_interval": 0.3},
            "debug.val_check_interval validates after every 5 of the 18 batches of an epoch, but not at its end",
        ),
        (
            {"debug__val_check_interval": 1000},
            "debug.val_check_interval = 1000 exceeds the number of batches in an epoch",
        ),
    ],
)
def test_an_impossible_debug_limit_fails_with_a_one_line_error(
    keys: dict[str, object], line: str, watched: Callable[..., Steps]
) -> None:
    with pytest.raises(UserError) as raised:
        watched(**keys)
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_real_run_is_not_marked_as_a_debug_run(watched: Callable[..., Steps]) -> None:
    watched(fit__max_epochs=1)
    run_test_and_predict()
    assert told("model/model.json")["debug"] is False
    assert "debug" not in told("evaluation/fit.json") | told("evaluation/test.json")
    assert "DEBUG" not in "\n".join(summary.as_lines(summary.read_facts()))


@pytest.mark.filterwarnings("ignore:.*LeafSpec")
@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType")  # from a function in MLflow
@pytest.mark.usefixtures("fitted_in_mlflow")
def test_a_real_run_replaces_a_debug_run_with_the_same_weights(watched: Callable[..., Steps]) -> None:
    keys = {"fit__max_epochs": 1, "tracking__loggers": ["mlflow"]}
    watched(debug__limit_val_batches=1, **keys)
    trial = model_sha256(Path("data/model"))
    watched(**keys)
    assert model_sha256(Path("data/model")) == trial, "otherwise the test proves nothing"
    (run,) = MlflowClient().search_runs(["1"])
    assert "debug" not in run.data.tags
    register.main("refit")


def test_a_nan_loss_stops_the_fit_at_its_step_and_its_batch_is_recorded(
    watched: Callable[..., Steps], monkeypatch: pytest.MonkeyPatch
) -> None:
    step, epoch, bad = Classifier.training_step, 1, 4
    images: list[torch.Tensor] = []

    def spoilt(self: Classifier, batch: Batch, batch_idx: int) -> torch.Tensor:
        loss = step(self, batch, batch_idx)
        if (self.current_epoch, batch_idx) == (epoch, bad):
            images.append(batch.images)
            return loss * math.nan
        assert not images, "a step ran after the one with the NaN loss"
        return loss

    monkeypatch.setattr(Classifier, "training_step", spoilt)
    with pytest.raises(UserError, match=r"the training loss is nan in epoch 2, batch 5, at a learning rate of"):
        watched(optimizer__schedule="constant", learning_rate=0.01)
    assert not Path("data/model").exists()
    (note,) = Path("data/state").glob("*/diverged.json")
    kept = json.loads(note.read_text())
    assert (kept["loss"], kept["epoch"], kept["batch"]) == ("nan", epoch + 1, bad + 1)
    assert (kept["optimizer_step"], kept["learning_rate"]) == (STEPS_AN_EPOCH + bad + 1, 0.01)
    assert kept["gradient_norm"] == "nan"
    assert torch.equal(torch.from_numpy(read_split("train").images[kept["train_rows"]]), images[0])


def test_a_nan_loss_that_is_read_some_steps_later_is_reported_with_its_batch(
    watched: Callable[..., Steps], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a CUDA device, where no step waits for the loss."""
    step, bad, late = Classifier.training_step, 4, 3
    images: list[torch.Tensor] = []
    arrived: list[divergence.Step] = []

    def spoilt(self: Classifier, batch: Batch, batch_idx: int) -> torch.Tensor:
        images.append(batch.images)
        return step(self, batch, batch_idx) * (math.nan if batch_idx == bad else 1)

    def is_readable(first: divergence.Step) -> bool:
        if len(images) > len(arrived) + late:
            arrived.append(first)
            return True
        return False

    monkeypatch.setattr(Classifier, "training_step", spoilt)
    monkeypatch.setattr(divergence.Step, "is_readable", is_readable)
    with pytest.raises(UserError, match=r"the training loss is nan in epoch 1, batch 5,"):
        watched()
    assert len(images) == bad + 1 + late
    (note,) = Path("data/state").glob("*/diverged.json")
    rows = json.loads(note.read_text())["train_rows"]
    assert torch.equal(torch.from_numpy(read_split("train").images[rows]), images[bad])
