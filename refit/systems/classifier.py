"""The image classifier as a LightningModule: a network with its loss, metrics and optimizer."""

from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F  # noqa: N812
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import CatMetric, MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from refit.data.module import Batch
from refit.params import OptimizerParams


class Classifier(pl.LightningModule):
    """Images to class logits.

    Metrics are summed on the device and reduced once an epoch: nothing in a step waits for the device.
    """

    def __init__(
        self,
        network: nn.Module,
        classes: int,
        optimizer: OptimizerParams | None = None,
        label_smoothing: float = 0.0,
        learning_rate: float = 0.0,
        test_time_flip: bool = False,
    ) -> None:
        """`network` takes uint8 images (N, C, H, W) to logits (N, classes); `test_time_flip` has test and prediction
        take the mean of the logits of each image and of its mirror image; the three before it are for training alone.
        """
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)  # the layout that convolutions like best
        self.optimizer_params = optimizer
        self.label_smoothing = label_smoothing
        self.learning_rate = learning_rate
        self.test_time_flip = test_time_flip
        self.train_sums: Tensor
        self.register_buffer("train_sums", torch.zeros(2), persistent=False)  # of losses and of hits, over images
        self.train_images = 0
        # Unchecked for NaN, which would wait for the device at each step; in this mode a weight is ignored.
        self.val_loss = MeanMetric(nan_strategy="disable")
        self.val_accuracy = MulticlassAccuracy(classes, average="micro", validate_args=False)
        self.test_probabilities = CatMetric(nan_strategy="disable")

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_current_fx_name":  # Lightning notes each hook in it, some 40 times a step
            self.__dict__[name] = value  # without asking PyTorch whether it is a parameter
        else:
            super().__setattr__(name, value)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, float (N, classes), of uint8 images (N, C, H, W)."""
        logits: Tensor = self.network(images)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits = self(batch.images)
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing)
        # By hand: two torchmetrics would take longer than all else that Refit does in a step (docs/performance.md).
        with torch.no_grad():
            hits = (logits.argmax(dim=1) == batch.labels).sum()
            self.train_sums += torch.stack((loss * len(batch.labels), hits))
            self.train_images += len(batch.labels)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        logits = self(batch.images)
        self.val_loss.update(F.cross_entropy(logits, batch.labels, reduction="none"))
        self.val_accuracy.update(logits, batch.labels)

    def on_validation_epoch_end(self) -> None:
        """Both splits' metrics in one place, so that whoever listens sees an epoch whole."""
        loss, hits = self.train_sums / max(self.train_images, 1)
        self.log_dict({"train_loss": loss, "train_accuracy": hits}, prog_bar=True)
        self.train_sums, self.train_images = torch.zeros_like(self.train_sums), 0
        for name in ("val_loss", "val_accuracy"):
            metric = getattr(self, name)
            self.log(name, metric.compute(), prog_bar=True)
            metric.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["train_sums"], checkpoint["train_images"] = self.train_sums, self.train_images

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.train_sums.copy_(checkpoint["train_sums"])
        self.train_images = checkpoint["train_images"]

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep each image's probabilities: every figure of the report follows from them."""
        self.test_probabilities.update(self.predict_step(batch, batch_idx))

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Probabilities, float32 (N, classes)."""
        logits: Tensor = self(batch.images)
        if self.test_time_flip:
            logits = (logits + self(batch.images.flip(3))) / 2
        return logits.float().softmax(dim=1)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        params = self.optimizer_params
        assert params is not None, "this classifier was made to be used, not to be trained"
        optimizer = self._optimizer(params)
        if params.schedule == "constant":
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler: torch.optim.lr_scheduler.LRScheduler
        if params.schedule == "cosine":
            scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        else:
            scheduler = torch.optim.lr_scheduler.OneCycleLR(
                optimizer,
                self.learning_rate,
                total_steps=steps,
                pct_start=params.warm_up,
                anneal_strategy="linear" if params.schedule == "triangular" else "cos",
                cycle_momentum=False,
            )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _optimizer(self, params: OptimizerParams) -> torch.optim.Optimizer:
        # Decay shrinks what multiplies; norms and biases only shift and scale.
        weights = [weight for weight in self.network.parameters() if weight.ndim > 1]
        others = [weight for weight in self.network.parameters() if weight.ndim <= 1]
        groups: list[dict[str, Any]] = [
            {"params": weights, "weight_decay": params.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        # One kernel for all weights, where the device has it; Lightning will not clip for it in mixed precision.
        clips_mixed = bool(self.trainer.gradient_clip_val) and self.trainer.precision.endswith("-mixed")
        fused = self.device.type in ("cpu", "cuda") and not clips_mixed
        if params.name == "adamw":
            return torch.optim.AdamW(groups, lr=self.learning_rate, betas=(params.momentum, 0.999), fused=fused)
        nesterov = params.momentum > 0
        return torch.optim.SGD(groups, lr=self.learning_rate, momentum=params.momentum, nesterov=nesterov, fused=fused)
