"""What our systems share: the sums of an epoch's figures, and the optimizer."""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import Metric

from refit.batches.datamodule import PreparedData
from refit.params import OptimizerParams
from refit.systems.networks import fit_whitening
from refit.systems.optimizers import configure_optimizers


class System(pl.LightningModule):
    """Figures are summed on the device and reduced once an epoch: nothing in a step waits for the device.

    So all are logged on_epoch and none on_step, for which the loggers would have to read them at a step: a batch's own
    loss is noise besides. All are on the progress bar (prog_bar), as few as they are. What is measured of a step, such
    as the gradient's norm, goes to the loggers once an epoch too (callbacks.EpochFacts), and to no output.
    """

    train_metrics: tuple[str, ...]
    """Names of what `add_train_metrics` is given the sums of; each is logged as train_NAME."""
    _ddp_params_and_buffers_to_ignore = ("train_sums",)  # each process's own; DDP would put the first's in its place

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerParams | None,
        learning_rate: float,
        val_metrics: Mapping[str, Metric],
    ) -> None:
        """`network` takes uint8 images (N, C, H, W) to what `forward` returns; `val_metrics`, updated by
        validation_step, are logged as val_NAME. `optimizer` and `learning_rate` are for training alone."""
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)  # the layout that convolutions like best
        self.optimizer_params = optimizer
        self.learning_rate = learning_rate
        self.train_sums: Tensor
        self.register_buffer("train_sums", torch.zeros(len(self.train_metrics)), persistent=False)  # over images
        self.train_images = 0
        self.val_metrics = nn.ModuleDict(val_metrics)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_current_fx_name":  # Lightning notes each hook in it, some 40 times a step
            self.__dict__[name] = value  # without asking PyTorch whether it is a parameter
        else:
            super().__setattr__(name, value)

    def forward(self, images: Tensor) -> Tensor:
        """The network's output for uint8 images (N, C, H, W)."""
        output: Tensor = self.network(images)
        return output

    def add_train_metrics(self, images: int, sums: Tensor) -> None:
        """Count a batch's sums over its images, without gradients."""
        # By hand: torchmetrics would take longer than all else that Refit does in a step (docs/performance.md).
        self.train_sums.add_(sums)
        self.train_images += images

    def update_val_metric(self, name: str, *values: Tensor) -> None:
        """Update the validation metric `name`."""
        metric = self.val_metrics[name]
        assert isinstance(metric, Metric)
        metric.update(*values)

    def on_fit_start(self) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, PreparedData):  # only now are the images at hand
            fit_whitening(self.network, data.train.images)

    def on_train_epoch_start(self) -> None:
        self.train_sums, self.train_images = torch.zeros_like(self.train_sums), 0

    def on_validation_epoch_end(self) -> None:
        """Both splits' figures in one place, so that whoever listens sees an epoch whole."""
        # Of several processes the mean, which is that of all images: each was given as many to train on, and a
        # metric is reduced over all of them before.
        means = self.train_sums / max(self.train_images, 1)
        train = {f"train_{name}": mean for name, mean in zip(self.train_metrics, means, strict=True)}
        self.log_dict(train, prog_bar=True, sync_dist=True)
        for name, metric in self.val_metrics.items():
            assert isinstance(metric, Metric)
            self.log(f"val_{name}", metric.compute(), prog_bar=True, sync_dist=True)
            metric.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        sums: Any = self.all_gather(self.train_sums)
        checkpoint["train_sums"] = sums.view(-1, len(self.train_sums))  # a row for each process
        checkpoint["train_images"] = self.train_images

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.train_sums.copy_(checkpoint["train_sums"][self.global_rank])
        self.train_images = checkpoint["train_images"]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        assert self.optimizer_params is not None, "this system was made to be used, not to be trained"
        return configure_optimizers(self, self.optimizer_params, self.learning_rate)
