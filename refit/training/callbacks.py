"""Callbacks of a Trainer: progress, history, and the best epoch."""

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
from refit.training.averaging import Average

BAR_PERIOD = 0.1  # seconds
BAR_WIDTH = 10  # characters
_OTHER_COLUMNS = len("Epoch 100/100 ") + BAR_WIDTH + len(" / 00:00:00 left ")  # and twice the number of batches


class TerminalBar(RichProgressBar):
    """Follows the clock, not the steps: the metrics beside a bar cannot be read without waiting for the device. The
    time left is that of the whole fit, if no early stopping ends it."""

    seconds_left: float | None = None
    _shown = -math.inf  # the clock may begin at 0, as the machine does

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._began = time.monotonic()
        self._done_before = trainer.fit_loop.epoch_loop.total_batch_idx + 1  # of a fit that goes on

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
        name = f"Epoch {current_epoch + 1}/{self.trainer.max_epochs}"  # from one on, as everywhere else
        return f"{name:{len(self.validation_description)}}"

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)  # the logger's version says nothing about the fit
        assert self.progress
        return _that_fit(metrics, self.progress.console.width - _OTHER_COLUMNS - len(str(self.total_train_batches)) * 2)


def _that_fit(metrics: dict[str, Any], width: int) -> dict[str, Any]:
    """Those that a line of the terminal has room for: losses before other metrics, and validation before training."""
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
    """One line an epoch, where the output is a log."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        metrics = "  ".join(f"{name} {float(value):.4f}" for name, value in trainer.callback_metrics.items())
        print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {metrics}", flush=True)


class History(Callback):
    """Each epoch's metrics and learning rate, and a stop where the loss is no longer a number."""

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
                f"debug.val_check_interval validates after every {between} of an epoch's {steps} batches, and not the "
                f"weights at its end, which are what is kept; expected 1.0, or a number of batches of {fitting}"
            )
        trainer.callback_metrics.update(self.validated)  # which Lightning forgets, where no validation is to come

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
    """The best epoch so far: its row of the history, and the weights that were validated. Of equals the first.

    Where weights are averaged from some epoch on, the epochs before it do not count. The fit ends with the system in
    its best epoch's state.
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
                f"fit.monitor = {self.monitor!r} is not what {type(pl_module).__name__} logs; "
                + (f"expected one of {logged}" if logged else "it needs a validation_step that logs it as val_NAME")
                + (f", and it logs {others}" if others and not logged else "")
            )
        if self.average and not self.average.begun():
            return
        if not self.row or self.is_better(row[self.monitor], self.row[self.monitor]):
            # By way of the strategy, which may have to put the weights together.
            strategy = trainer.strategy
            validated = self.average.averaged().state_dict() if self.average else strategy.lightning_module_state_dict()
            self.row, self.weights = row, {name: value.clone() for name, value in validated.items()}

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not isinstance(trainer.strategy, FSDPStrategy):  # else each device has a shard, which no weights fit into
            pl_module.load_state_dict(self.weights)
