"""What a fit shows beside figures: its first batch, and how its weights and gradients are spread."""

import io
import time
from typing import Any

import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torchvision.utils import make_grid

from refit.batches.datamodule import Batch, MixedBatch
from refit.tracking.loggers import FitLoggers

MOST_SHOWN = 32  # images of the first batch
COST_SHARE = 0.01  # of the time of a fit, at most, for histograms


class FirstBatch(Callback):
    """The first batch as the network sees it: augmented. It tells of wrong channels, sizes and augmentation."""

    def __init__(self, loggers: FitLoggers) -> None:
        self.loggers = loggers

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any,
                             batch_idx: int) -> None:  # fmt: skip
        if trainer.current_epoch == batch_idx == 0 and isinstance(batch, Batch | MixedBatch):
            self.loggers.log_picture("first_batch", grid(batch.images[:MOST_SHOWN]), 0)


def grid(images: Tensor) -> bytes:
    """uint8 images (N, C, H, W) side by side, as the bytes of a PNG file."""
    pixels = make_grid(images.cpu(), padding=1, pad_value=255).permute(1, 2, 0)
    content = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(content, format="png")
    return content.getvalue()


class Histograms(Callback):
    """Of the weights, and of the gradients of an epoch's last step as the optimizer saw them: of the first epoch, and
    then of each in which they take no more than COST_SHARE of the time since the last."""

    def __init__(self, loggers: FitLoggers) -> None:
        self.loggers = loggers
        self._gradients: dict[str, Tensor] = {}
        self._seconds = 0.0
        self._done = 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:  # fmt: skip
        if batch_idx + 1 == trainer.num_training_batches and self._is_due():
            weights = pl_module.named_parameters()  # Lightning drops their gradients before it validates
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
