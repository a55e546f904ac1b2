"""The image classifier as a LightningModule: a network with its loss, metrics and optimizer."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from refit.batches.datamodule import Batch, MixedBatch, PreparedData
from refit.params import LossParams, OptimizerParams
from refit.runtime.errors import UserError
from refit.systems.system import System


class Classifier(System):
    """Images to class logits."""

    train_metrics = ("loss", "accuracy")

    def __init__(
        self,
        network: nn.Module,
        classes: int,
        optimizer: OptimizerParams | None = None,
        loss: LossParams | None = None,
        learning_rate: float = 0.0,
        test_time_flip: bool = False,
    ) -> None:
        """`network` takes uint8 images (N, C, H, W) to logits (N, classes); `test_time_flip` has test and prediction
        take the mean of the logits of each image and of its mirror image; the three before it are for training alone.

        Label smoothing, class weights and mixed labels are of the training loss and train_loss; val_loss is the plain
        cross-entropy. Raises UserError where loss.class_weights are not a weight a class.
        """
        # Unchecked for NaN, which would wait for the device at each step; in this mode a weight is ignored.
        val_metrics = {
            "loss": MeanMetric(nan_strategy="disable"),
            "accuracy": MulticlassAccuracy(classes, average="micro", validate_args=False),
        }
        super().__init__(network, optimizer, learning_rate, val_metrics)
        self.label_smoothing = loss.label_smoothing if loss else 0.0
        self.balanced = loss is not None and loss.class_weights == "balanced"
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", _class_weights(loss, classes), persistent=False)
        self.test_time_flip = test_time_flip

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.balanced:  # only now are the labels at hand
            data = self.trainer.datamodule  # type: ignore[attr-defined]
            assert isinstance(data, PreparedData)
            assert self.class_weights is not None
            images = np.bincount(data.train.labels, minlength=len(self.class_weights))
            balanced = images.sum() / (len(images) * np.maximum(images, 1))
            self.class_weights.copy_(torch.from_numpy(balanced))

    def training_step(self, batch: Batch | MixedBatch, batch_idx: int) -> Tensor:
        logits = self(batch.images)
        loss = self._training_loss(logits, batch)
        with torch.no_grad():
            hits = self._hits(logits.argmax(dim=1), batch)
            self.add_train_metrics(len(batch.labels), torch.stack((loss * len(batch.labels), hits)))
        return loss

    def _training_loss(self, logits: Tensor, batch: Batch | MixedBatch) -> Tensor:
        if self.class_weights is None and isinstance(batch, Batch):
            return F.cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing)
        losses = self._losses(logits, batch.labels)
        if isinstance(batch, MixedBatch):
            losses = batch.lam * losses + (1 - batch.lam) * self._losses(logits, batch.other_labels)
        # By the number of images, not by the sum of their weights: so accumulated micro-batches step as one batch.
        return losses.mean()

    def _losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(
            logits, labels, self.class_weights, label_smoothing=self.label_smoothing, reduction="none"
        )

    @staticmethod
    def _hits(predicted: Tensor, batch: Batch | MixedBatch) -> Tensor:
        """Of mixed images, the shares of the labels that are predicted."""
        hits = predicted == batch.labels
        if isinstance(batch, Batch):
            return hits.sum()
        return (batch.lam * hits + (1 - batch.lam) * (predicted == batch.other_labels)).sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        logits = self(batch.images)
        self.update_val_metric("loss", F.cross_entropy(logits, batch.labels, reduction="none"))
        self.update_val_metric("accuracy", logits, batch.labels)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return self.predict_step(batch, batch_idx)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Probabilities, float32 (N, classes)."""
        logits: Tensor = self(batch.images)
        if self.test_time_flip:
            logits = (logits + self(batch.images.flip(3))) / 2
        return {"probabilities": logits.float().softmax(dim=1)}


def _class_weights(loss: LossParams | None, classes: int) -> Tensor | None:
    """Float32 (classes,), of ones until the fit starts where they are to be balanced; None where there are none."""
    if loss is None or loss.class_weights == "none":
        return None
    weights: Sequence[float] = [1.0] * classes if loss.class_weights == "balanced" else loss.class_weights
    if len(weights) != classes:
        raise UserError(
            f"loss.class_weights has {len(weights)} weights for {classes} classes; give one a class, in the order of "
            "their names"
        )
    return torch.tensor(weights)
