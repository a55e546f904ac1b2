"""The image classifier as a LightningModule: a network with its loss, metrics and optimizer."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from refit.data.module import Batch
from refit.params import LossParams, OptimizerParams
from refit.systems.system import System


class Classifier(System):
    """Images to class logits."""

    train_figures = ("loss", "accuracy")

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
        """
        # Unchecked for NaN, which would wait for the device at each step; in this mode a weight is ignored.
        val_metrics = {
            "loss": MeanMetric(nan_strategy="disable"),
            "accuracy": MulticlassAccuracy(classes, average="micro", validate_args=False),
        }
        super().__init__(network, optimizer, learning_rate, val_metrics)
        self.label_smoothing = loss.label_smoothing if loss else 0.0
        self.test_time_flip = test_time_flip

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits = self(batch.images)
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing)
        with torch.no_grad():
            hits = (logits.argmax(dim=1) == batch.labels).sum()
            self.add_train_figures(len(batch.labels), torch.stack((loss * len(batch.labels), hits)))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        logits = self(batch.images)
        self.count_validated("loss", F.cross_entropy(logits, batch.labels, reduction="none"))
        self.count_validated("accuracy", logits, batch.labels)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        return self.predict_step(batch, batch_idx)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Probabilities, float32 (N, classes)."""
        logits: Tensor = self(batch.images)
        if self.test_time_flip:
            logits = (logits + self(batch.images.flip(3))) / 2
        return {"probabilities": logits.float().softmax(dim=1)}
