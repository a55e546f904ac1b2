"""Base class of Refit's systems: metrics per epoch, and the optimizer."""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import Metric

from refit.batches.datamodule import Batch, PreparedData
from refit.params import OptimizerParams
from refit.systems.networks import fit_whitening
from refit.systems.optimizers import configure_optimizers

Answers = Tensor | dict[str, Tensor]
"""What `forward` returns: the task's answer, one row per image, or a dictionary of it and more."""


class System(pl.LightningModule):
    """A subclass defines `forward`, which is inference: uint8 images (N, C, H, W) in, answers out. Training and
    validation take the network's outputs from `self.network`.

    Metrics are summed on the device and reduced once an epoch, so that no step waits for the device. They are logged
    with on_epoch and appear in the progress bar. Values measured at each step, such as the gradient norm, are logged
    once an epoch too, but are not part of any stage's output.
    """

    train_metrics: tuple[str, ...]
    """Names of the sums given to `add_train_metrics`; each mean is logged as train_NAME."""
    # Each process has its own sums. DDP would overwrite them with the first process's; no public attribute prevents it.
    _ddp_params_and_buffers_to_ignore = ("train_sums",)

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerParams | None,
        learning_rate: float,
        val_metrics: Mapping[str, Metric],
    ) -> None:
        """`network` takes uint8 images (N, C, H, W). validation_step updates `val_metrics`, logged as val_NAME.
        `optimizer` and `learning_rate` are needed for training only."""
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)  # the fastest layout for convolutions
        self.optimizer_params = optimizer
        self.learning_rate = learning_rate
        self.train_sums: Tensor
        self.register_buffer("train_sums", torch.zeros(len(self.train_metrics)), persistent=False)  # over images
        self.train_images = 0
        self.val_metrics = nn.ModuleDict(val_metrics)

    def add_train_metrics(self, images: int, sums: Tensor) -> None:
        """Add a batch's sums over its images, without gradients."""
        # Not torchmetrics: it would take longer than everything else that Refit does in a step (docs/performance.md).
        self.train_sums.add_(sums)
        self.train_images += images

    def update_val_metric(self, name: str, *values: Tensor) -> None:
        metric = self.val_metrics[name]
        assert isinstance(metric, Metric)
        metric.update(*values)

    def test_step(self, batch: Batch, batch_idx: int) -> Answers:
        answers: Answers = self(batch.images)
        return answers

    def on_fit_start(self) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, PreparedData):  # the training images were not known before
            fit_whitening(self.network, data.train.images)

    def on_train_epoch_start(self) -> None:
        self.train_sums, self.train_images = torch.zeros_like(self.train_sums), 0

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of both splits together, so that loggers and callbacks see a whole epoch."""
        # Averaging over processes gives the mean over all images: each process trains on the same number of images, and
        # compute() has already reduced the validation metrics.
        means = self.train_sums / max(self.train_images, 1)
        train = {f"train_{name}": mean for name, mean in zip(self.train_metrics, means, strict=True)}
        self.log_dict(train, prog_bar=True, sync_dist=True)
        for name, metric in self.val_metrics.items():
            assert isinstance(metric, Metric)
            self.log(f"val_{name}", metric.compute(), prog_bar=True, sync_dist=True)
            metric.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        sums: Any = self.all_gather(self.train_sums)
        checkpoint["train_sums"] = sums.view(-1, len(self.train_sums))  # one row per process
        checkpoint["train_images"] = self.train_images

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.train_sums.copy_(checkpoint["train_sums"][self.global_rank])
        self.train_images = checkpoint["train_images"]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        assert self.optimizer_params is not None, "this system was built for inference"
        return configure_optimizers(self, self.optimizer_params, self.learning_rate)
