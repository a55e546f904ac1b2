"""Weight averaging: averaged weights are validated and kept in place of the trained ones."""

import warnings
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn, update_bn
from torchmetrics import Metric

from refit.batches.augment import full_size_batch
from refit.batches.datamodule import Batch, PreparedData, TrainLoader, take
from refit.params import FitParams


class Average(Callback):
    """A copy of the system with averaged weights, which each validation uses.

    Until the first update, the trained weights themselves are validated.
    """

    system: pl.LightningModule
    """The copy. Outside validation it holds the averaged weights."""

    def __init__(self) -> None:
        self.updates = 0

    @property
    def has_begun(self) -> bool:
        return self.updates > 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.system = deepcopy(pl_module).to(trainer.strategy.root_device)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "weights": self.system.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.updates = state_dict["updates"]
        self.system.load_state_dict(state_dict["weights"])

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.has_begun:
            _swap(self.system, pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.has_begun:
            _swap(self.system, pl_module)


class MovingAverage(Average):
    """Exponential moving average of the weights and of batch norm's statistics, updated at each optimizer step.

    The decay grows to `decay` over the first steps, as TensorFlow's does. With a constant decay, the average of a short
    fit would still contain much of the initial weights.
    """

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:  # fmt: skip
        if trainer.global_step > self.updates:  # not after each micro-batch
            self._update(pl_module)

    @torch.no_grad()
    def _update(self, system: nn.Module) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.updates else 0.0
        pairs = list(zip(_tensors(self.system), _tensors(system), strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        average([mean for mean, _ in floats], [now for _, now in floats], self.updates)
        for mean, now in pairs:
            if not mean.is_floating_point():  # batch norm's counters
                mean.copy_(now)
        self.updates += 1


class StochasticWeightAverage(Average):
    """Mean of the weights at the ends of epochs, from a given epoch on (Izmailov et al. 2018).

    Batch norm's statistics are not averaged. They are recomputed before each validation, in one pass over the training
    images without augmentation.
    """

    def __init__(self, first_epoch: int) -> None:
        """`first_epoch`, counted from 0, is the first epoch whose weights are averaged."""
        super().__init__()
        self.first_epoch = first_epoch

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if trainer.max_epochs:  # a debug run may have fewer epochs than fit.max_epochs
            self.first_epoch = min(self.first_epoch, trainer.max_epochs - 1)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:  # fmt: skip
        # Not in on_train_epoch_end, which comes after the epoch's validation.
        if batch_idx + 1 == trainer.num_training_batches and trainer.current_epoch >= self.first_epoch:
            self._update(pl_module)

    @torch.no_grad()
    def _update(self, system: nn.Module) -> None:
        average = get_swa_multi_avg_fn()  # type: ignore[no-untyped-call]
        average(list(self.system.parameters()), list(system.parameters()), self.updates)
        for copied, buffer in zip(self.system.buffers(), system.buffers(), strict=True):
            copied.copy_(buffer)
        self.updates += 1

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.has_begun:
            _compute_batch_norm(self.system, trainer)
        super().on_validation_epoch_start(trainer, pl_module)


def make_average(fit: FitParams) -> Average | None:
    if fit.averaging == "ema":
        return MovingAverage(fit.ema_decay)
    if fit.averaging == "swa":
        return StochasticWeightAverage(fit.first_averaged_epoch)
    return None


def _tensors(system: nn.Module) -> Iterator[Tensor]:
    yield from system.parameters()
    yield from system.buffers()


@torch.no_grad()
def _swap(one: nn.Module, other: nn.Module) -> None:
    for mine, theirs in zip(_tensors(one), _tensors(other), strict=True):
        kept = mine.clone()
        mine.copy_(theirs)
        theirs.copy_(kept)


def _compute_batch_norm(system: nn.Module, trainer: pl.Trainer) -> None:
    """Set the batch norm statistics of `system` to those of the training images.

    Leaves the global random states unchanged.
    """
    with isolate_rng(), warnings.catch_warnings(), trainer.precision_plugin.val_step_context():
        # The copy has no trainer, so what its validation step logs goes nowhere.
        warnings.filterwarnings("ignore", ".*`self.trainer` reference is not registered")
        update_bn(([batch] for batch in _training_images(trainer)), _ValidationStep(system))
    for module in system.modules():
        if isinstance(module, Metric):
            module.reset()


def _training_images(trainer: pl.Trainer) -> Iterator[Batch]:
    """Shuffled micro-batches without augmentation, at the size that is validated and tested. In the order of the set, a
    batch could hold a single class."""
    loader, data = trainer.train_dataloader, trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(loader, TrainLoader)
    assert isinstance(data, PreparedData)
    order = torch.from_numpy(np.random.default_rng(data.seed).permutation(len(loader.labels)))
    size = full_size_batch(loader.augmentation, loader.batch_size, *loader.images.shape[2:])
    size = min(loader.batch_size, max(2, size))  # batch norm may not train on one image
    whole_batches = order[: len(order) // size * size]
    for indices in torch.split(whole_batches.to(loader.labels.device), size):
        yield Batch(take(loader.images, indices).to(loader.device), loader.labels[indices].to(loader.device))


class _ValidationStep(nn.Module):
    """Calls the system's validation step, which uses all layers. Its `forward` may omit some, such as a decoder."""

    def __init__(self, system: nn.Module) -> None:
        super().__init__()
        self.system = system

    def forward(self, batch: Batch) -> None:
        self.system.validation_step(batch, 0)  # type: ignore[operator]
