"""Averages of the weights, which are validated and kept in place of the weights themselves."""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torchmetrics import Metric

from refit.batches.datamodule import Batch, PreparedData, TrainLoader
from refit.params import FitParams


class Average(WeightAveraging):
    """Until it has begun, the weights themselves are validated."""

    def begun(self) -> bool:
        assert self._average_model is not None
        return bool(self._average_model.n_averaged > 0)

    def averaged(self) -> nn.Module:
        """The system with the averaged weights, between two validations."""
        assert self._average_model is not None
        module: nn.Module = self._average_model.module
        return module

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.begun():
            super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.begun():
            super().on_validation_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.begun():
            super().on_train_end(trainer, pl_module)


class MovingAverage(Average):
    """Exponential, of the weights and of batch norm's statistics after each optimizer step.

    It looks back on fewer steps at first, as TensorFlow's: else a short fit's holds on to the initial weights.
    """

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:  # fmt: skip
        # By the trainer's number of steps: AveragedModel's own is on the device, for which each step would wait.
        if trainer.global_step > self._latest_update_step:
            self._latest_update_step = trainer.global_step
            self._update(pl_module, trainer.global_step - 1)

    @torch.no_grad()
    def _update(self, system: pl.LightningModule, before: int) -> None:
        assert self._average_model is not None
        decay = min(self.decay, (1 + before) / (10 + before)) if before else 0.0
        pairs = list(zip(_tensors(self.averaged()), _tensors(system), strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([mean for mean, _ in floats], [now for _, now in floats], 1 - decay)
        for mean, now in pairs:
            if not mean.is_floating_point():
                mean.copy_(mean * decay + now * (1 - decay))
        self._average_model.n_averaged += 1


class StochasticWeightAverage(Average):
    """The mean of the weights at the ends of epochs, from a given one on (Izmailov et al. 2018).

    Batch norm's statistics are those of no epoch: before each validation they are computed anew, in one pass over the
    training images as they are, without augmentation.
    """

    def __init__(self, first_epoch: int) -> None:
        """`first_epoch`, from 0, is the first whose weights count."""
        super().__init__(use_buffers=False)
        self.first_epoch = first_epoch

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if trainer.max_epochs:  # which a run for debugging cuts short
            self.first_epoch = min(self.first_epoch, trainer.max_epochs - 1)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:  # fmt: skip
        # Validation comes before the epoch's own end: the epoch's last step is the last chance.
        if batch_idx + 1 == trainer.num_training_batches and trainer.current_epoch >= self.first_epoch:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.begun():
            _compute_batch_norm(self.averaged(), trainer)
        super().on_validation_epoch_start(trainer, pl_module)


def _tensors(system: nn.Module) -> Iterator[Tensor]:
    yield from system.parameters()
    yield from system.buffers()


def make_average(fit: FitParams) -> Average | None:
    if fit.averaging == "ema":
        return MovingAverage(fit.ema_decay)
    if fit.averaging == "swa":
        return StochasticWeightAverage(fit.first_averaged_epoch)
    return None


def _compute_batch_norm(system: nn.Module, trainer: pl.Trainer) -> None:
    """The batch norm statistics of `system`, of the training images; no random number is drawn from anybody's."""
    with isolate_rng(), warnings.catch_warnings(), trainer.precision_plugin.val_step_context():
        warnings.filterwarnings("ignore", ".*`self.trainer` reference is not registered")  # what a step logs
        update_bn(([batch] for batch in _training_images(trainer)), _ValidationStep(system))
    for module in system.modules():
        if isinstance(module, Metric):
            module.reset()  # what the steps counted is nobody's


def _training_images(trainer: pl.Trainer) -> Iterator[Batch]:
    """Micro-batches in an order of their own: where a set lies class by class, a batch would show one class alone."""
    loader, data = trainer.train_dataloader, trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(loader, TrainLoader)
    assert isinstance(data, PreparedData)
    order = torch.from_numpy(np.random.default_rng(data.seed).permutation(len(loader.labels)))
    whole_batches = order[: len(order) // loader.batch_size * loader.batch_size]
    for indices in torch.split(whole_batches.to(loader.images.device), loader.batch_size):
        yield Batch(loader.images[indices].to(loader.device), loader.labels[indices].to(loader.device))


class _ValidationStep(nn.Module):
    """Goes through every layer that a validation does, a decoder's too, which the system's `forward` may leave out."""

    def __init__(self, system: nn.Module) -> None:
        super().__init__()
        self.system = system

    def forward(self, batch: Batch) -> None:
        self.system.validation_step(batch, 0)  # type: ignore[operator]
