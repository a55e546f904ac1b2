"""Callbacks of the fit stage: progress, history, best epoch, measurements."""

import math
import operator
import time
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, RichProgressBar
from pytorch_lightning.strategies import FSDPStrategy
from rich.progress import ProgressColumn, Task
from rich.text import Text
from torch import Tensor

from refit.params import FitParams
from refit.runtime.errors import UserError
from refit.runtime.progress import Lines
from refit.training.averaging import Average

BAR_PERIOD = 0.1  # seconds
BAR_WIDTH = 10  # characters
_OTHER_COLUMNS = len("Epoch 100/100 ") + BAR_WIDTH + len(" / 00:00:00 left ")  # without the two batch counts


class TerminalBar(RichProgressBar):
    """Refreshes every BAR_PERIOD, not at every step: reading the metrics beside the bar waits for the device.

    Shows the time left for the whole fit, assuming that early stopping does not end it.
    """

    seconds_left: float | None = None
    _shown = -math.inf  # on a freshly booted machine the clock starts at 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._began = time.monotonic()
        self._done_before = trainer.global_step * trainer.accumulate_grad_batches  # of a resumed fit

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:  # fmt: skip
        now = time.monotonic()
        if now - self._shown >= BAR_PERIOD or batch_idx + 1 == self.total_train_batches:
            self._shown = now
            done = trainer.current_epoch * self.total_train_batches + batch_idx + 1
            left = (trainer.max_epochs or 0) * self.total_train_batches - done
            self.seconds_left = left * (now - self._began) / max(done - self._done_before, 1) if left >= 0 else None
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def configure_columns(self, trainer: pl.Trainer) -> list[Any]:
        name, bar, batches, *_ = super().configure_columns(trainer)
        bar.bar_width = BAR_WIDTH
        return [name, bar, batches, _TimeLeft(self)]

    def _get_train_description(self, current_epoch: int) -> str:
        name = f"Epoch {current_epoch + 1}/{self.trainer.max_epochs}"  # counted from 1, as everywhere else
        return f"{name:{len(self.validation_description)}}"

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)  # the logger's version: irrelevant to the fit
        assert self.progress
        return _fit_into(metrics, self.progress.console.width - _OTHER_COLUMNS - len(str(self.total_train_batches)) * 2)


def _fit_into(metrics: dict[str, Any], width: int) -> dict[str, Any]:
    """Metrics that fit into `width` characters. Losses have priority over other metrics, validation over training."""
    kept = list(metrics)
    for name in sorted(metrics, key=lambda name: (name.endswith("loss"), name.startswith("val_"))):
        if sum(len(f"{name}: 0.000 ") for name in kept) > width:
            kept.remove(name)
    return {name: metrics[name] for name in kept}


class _TimeLeft(ProgressColumn):
    max_refresh = 0.5

    def __init__(self, bar: TerminalBar) -> None:
        super().__init__()
        self.bar = bar

    def render(self, task: Task) -> Text:
        left = self.bar.seconds_left if task.id == self.bar.train_progress_bar_id else task.time_remaining
        return Text("" if left is None else f"{timedelta(seconds=round(left))} left")


class EpochLines(Callback):
    """Prints one line per epoch, for output that is not a terminal, and a line now and then within long epochs."""

    lines: Lines

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.on_train_epoch_start(trainer, pl_module)  # a resumed fit is in the middle of an epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        what = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}, batch"
        self.lines = Lines(what, int(trainer.num_training_batches))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:  # fmt: skip
        if trainer.is_global_zero:
            self.lines.show(batch_idx + 1)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.lines = Lines("test, batch", int(sum(trainer.num_test_batches)))

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
                          batch_idx: int, dataloader_idx: int = 0) -> None:  # fmt: skip
        self.lines.show(batch_idx + 1)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.lines = Lines("predict, batch", int(sum(trainer.num_predict_batches)))

    def on_predict_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
                             batch_idx: int, dataloader_idx: int = 0) -> None:  # fmt: skip
        self.lines.show(batch_idx + 1)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        metrics = "  ".join(f"{name} {float(value):.4f}" for name, value in trainer.callback_metrics.items())
        print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {metrics}", flush=True)


class History(Callback):
    """Metrics and learning rate of each epoch. Raises UserError if a metric is not finite."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.validated: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "learning_rate": self.learning_rate, "validated": self.validated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self.learning_rate = state_dict["rows"], state_dict["learning_rate"]
        self.validated = state_dict["validated"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        steps, between = int(trainer.num_training_batches), int(trainer.val_check_batch or 1)
        if trainer.enable_validation and steps % between:
            fitting = [number for number in range(2, steps) if steps % number == 0] or [steps]
            raise UserError(
                f"debug.val_check_interval validates after every {between} of the {steps} batches of an epoch, but not "
                f"at its end, where the weights are kept; expected 1.0, or one of these numbers of batches: {fitting}"
            )
        # Lightning does not restore these. A resumed epoch without another validation would have none.
        trainer.callback_metrics.update(self.validated)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.validated = dict(trainer.callback_metrics)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.learning_rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 0:
            raise UserError(
                f"no optimizer step was taken in the first epoch: training_step of {type(pl_module).__name__} must "
                "return the loss"
            )
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if not all(map(math.isfinite, metrics.values())):
            raise UserError(
                f"the loss is not finite after epoch {trainer.current_epoch + 1}: {metrics}; "
                "lower optimizer.learning_rate, or set fit.gradient_clip_val"
            )
        self.rows.append({"epoch": trainer.current_epoch + 1, **metrics, "learning_rate": self.learning_rate})


class Best(Callback):
    """The best epoch so far: its row of the history and its validated weights. The first of equal epochs wins.

    If weights are averaged from some epoch on, earlier epochs do not count. At the end of the fit, the weights of the
    best epoch are loaded into the system.
    """

    def __init__(self, history: History, fit: FitParams, average: Average | None) -> None:
        self.history = history
        self.monitor = fit.monitor
        self.is_better = operator.lt if fit.monitor_mode == "min" else operator.gt
        self.average = average
        self.row: dict[str, float] = {}
        self.weights: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"row": self.row, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.row, self.weights = state_dict["row"], state_dict["weights"]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        row = self.history.rows[-1]
        if self.monitor not in row:
            logged = ", ".join(name for name in row if name.startswith("val_"))
            others = ", ".join(name for name in trainer.callback_metrics if not name.startswith("train_"))
            raise UserError(
                f"fit.monitor = {self.monitor!r} is not logged by {type(pl_module).__name__}; "
                + (f"expected one of {logged}" if logged else "it needs a validation_step that logs it as val_NAME")
                + (f", and it logs {others}" if others and not logged else "")
            )
        if self.average and not self.average.has_begun:
            return
        if not self.row or self.is_better(row[self.monitor], self.row[self.monitor]):
            if self.average:
                validated = self.average.system.state_dict()
            else:
                validated = trainer.strategy.lightning_module_state_dict()  # it gathers sharded weights
            self.row, self.weights = row, {name: value.clone() for name, value in validated.items()}

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not isinstance(trainer.strategy, FSDPStrategy):  # where each device holds only a shard
            pl_module.load_state_dict(self.weights)
