"""Callbacks that watch a fit for its loggers. They change no result."""

import io
import math
import resource
import sys
import time
from typing import Any

import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torchvision.utils import make_grid

from refit.batches.datamodule import TrainBatch, TrainLoader
from refit.tracking.loggers import FitLoggers
from refit.training.callbacks import History

MOST_SHOWN = 32  # images of the first batch
COST_SHARE = 0.01  # the largest part of a fit's time that histograms may take


def watchers(loggers: FitLoggers) -> list[Callback]:
    """The callbacks that a fit with these loggers has."""
    histograms = [Histograms(loggers)] if loggers.hold_histograms else []
    return [EpochFacts(), FirstBatch(loggers), *histograms]


class EpochFacts(Callback):
    """Logs each epoch's learning rate, images per second, seconds, memory and the gradient norm of its last step.

    Times differ from run to run, so they go to the loggers and into no output. The first step of a fit, in which
    libraries and torch.compile warm up, is logged on its own.
    """

    def __init__(self) -> None:
        self.first_step: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        (self.history,) = (callback for callback in trainer.callbacks if isinstance(callback, History))  # type: ignore[attr-defined]
        self.gradient_norm = torch.tensor(math.nan)
        self.on_train_epoch_start(trainer, pl_module)  # a resumed fit is in the middle of an epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = self.epoch_started = time.perf_counter()
        self.batches = 0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:  # fmt: skip
        self.batches += 1
        self.seconds = time.perf_counter() - self.started
        if trainer.current_epoch == batch_idx == 0:
            self.first_step, self.started, self.batches = self.seconds, self.started + self.seconds, 0

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if trainer.is_last_batch:  # each step's would cost as much as clipping does
            gradients = [weight.grad for weight in pl_module.parameters() if weight.grad is not None]
            self.gradient_norm = torch.nn.utils.get_total_norm(gradients)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(trainer.train_dataloader, TrainLoader)
        facts = {
            "learning_rate": self.history.rows[-1]["learning_rate"],
            "gradient_norm": float(self.gradient_norm),
            "epoch_seconds": time.perf_counter() - self.epoch_started,
            "memory_gib": _peak_memory(pl_module.device) / 2**30,
        }
        if self.batches:
            images = self.batches * trainer.train_dataloader.batch_size * trainer.world_size
            facts["images_per_second"] = images / self.seconds
        for logger in trainer.loggers:
            logger.log_metrics(facts, trainer.global_step - 1)
            if trainer.current_epoch == 0 and self.first_step is not None:
                logger.log_metrics({"first_step_seconds": self.first_step})


def _peak_memory(device: torch.device) -> int:
    """The peak so far, in bytes: of the device, or on a CPU of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class FirstBatch(Callback):
    """Logs the first batch as the network sees it, which shows wrong channels, sizes and augmentation."""

    def __init__(self, loggers: FitLoggers) -> None:
        self.loggers = loggers

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any,
                             batch_idx: int) -> None:  # fmt: skip
        if trainer.current_epoch == batch_idx == 0 and isinstance(batch, TrainBatch):
            self.loggers.log_picture("first_batch", grid(batch.images[:MOST_SHOWN]), 0)


def grid(images: Tensor) -> bytes:
    """uint8 images (N, C, H, W) in a grid, as the bytes of a PNG file."""
    pixels = make_grid(images.cpu(), padding=1, pad_value=255).permute(1, 2, 0)
    content = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(content, format="png")
    return content.getvalue()


class Histograms(Callback):
    """Logs histograms of the weights, and of the gradients of an epoch's last step as the optimizer saw them.

    They are logged after the first epoch, and then whenever that takes at most COST_SHARE of the time since the last.
    """

    def __init__(self, loggers: FitLoggers) -> None:
        self.loggers = loggers
        self._gradients: dict[str, Tensor] = {}
        self._seconds = 0.0
        self._done = 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:  # fmt: skip
        if batch_idx + 1 == trainer.num_training_batches and self._is_due():
            weights = pl_module.named_parameters()  # Lightning drops the gradients before it validates
            self._gradients = {name: weight.grad.clone() for name, weight in weights if weight.grad is not None}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._is_due():
            return
        began = time.monotonic()
        values = {f"weights/{name}": weight.detach() for name, weight in pl_module.named_parameters()}
        values |= {f"gradients/{name}": gradient for name, gradient in self._gradients.items()}
        finite = {name: value for name, value in values.items() if torch.isfinite(value).all()}
        self.loggers.log_histograms(finite, trainer.global_step - 1)
        self._gradients = {}
        self._done = time.monotonic()
        self._seconds = self._done - began

    def _is_due(self) -> bool:
        return (time.monotonic() - self._done) * COST_SHARE >= self._seconds
